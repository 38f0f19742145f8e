//! Excessive requests are refused clearly, and the hub keeps working.

use std::time::Duration;

use cohort_registry::{
    Asked, Op, RangeRequest, Registry as _, RegistryError, Selector, Txn, WatchRequest, keys,
};
use cohort_wire::http::Call;

use crate::support::Running;

#[tokio::test]
async fn oversized_bodies_are_refused() {
    let hub = Running::start().await;
    let (_, agent) = hub.join_agent("a-1", "zone-a").await;
    let call = Call::post("/v1/registry/txn", &Txn::default()).bytes(vec![b' '; 5 * 1024 * 1024]);
    let error = agent.client.call(&agent.target, call).await.unwrap_err();
    // The bytes still being sent may cut off the response.
    assert!(error.status().is_none_or(|status| status == 413), "{error:?}");
    let large = Txn {
        then: vec![Op::put(keys::ROOT.to_owned() + "servers/a-1", "x".repeat(300 * 1024))],
        ..Txn::default()
    };
    let error = agent.registry().txn(large).await.unwrap_err();
    assert!(matches!(error, RegistryError::Invalid { .. }), "{error}");
    let malformed = Call::post("/v1/registry/txn", &"no transaction");
    assert_eq!(agent.send(malformed).await.unwrap_err().status, 422);
    // Operations in the branch of a failed comparison would be a way around it.
    let otherwise = serde_json::json!([{ "delete": { "key": "/" } }]);
    let around = serde_json::json!({ "request": { "then": [], "otherwise": otherwise } });
    let error = agent.send(Call::post("/v1/registry/txn", &around)).await.unwrap_err();
    assert_eq!(error.status, 422, "{error}");
    let unknown_key =
        serde_json::json!({ "request": { "select": { "prefix": "/" }, "limits": 3 } });
    let error = agent.send(Call::post("/v1/registry/range", &unknown_key)).await.unwrap_err();
    assert!(error.error.contains("limits"), "{error}");
    let error = agent.send(Call::get("/v1/nothing")).await.unwrap_err();
    assert_eq!((error.status, error.kind.as_str()), (404, "not_found"));
    let error = agent.send(Call::get("/v1/join")).await.unwrap_err();
    assert_eq!(error.status, 405);
    let select = Selector::Prefix("/".into());
    let range = RangeRequest { select, after: None, limit: 0 };
    agent.registry().range(range).await.expect("the hub still works");
    hub.stop().await;
}

#[tokio::test]
async fn a_stop_ends_watches_that_wait() {
    let hub = Running::start().await;
    let (_, agent) = hub.join_agent("a-1", "zone-a").await;
    let registry = agent.registry();
    let select = Selector::Prefix("/never/".into());
    let request = WatchRequest { select, from_revision: 0, wait_ms: 60_000 };
    let waiting = tokio::spawn(async move { registry.watch(request).await });
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !hub.plain("GET", "/metrics", "").await.text().contains("cohort_hub_watches 1\n") {
        assert!(tokio::time::Instant::now() < deadline, "the watch never came");
    }
    hub.stop().await;
    let error = waiting.await.unwrap().unwrap_err();
    assert!(matches!(error, RegistryError::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn one_watch_too_many_is_asked_to_come_again() {
    let hub = Running::start_with(|config| config.watches_max = 1).await;
    let (_, agent) = hub.join_agent("a-1", "zone-a").await;
    let select = Selector::Prefix("/never/".into());
    let request = WatchRequest { select, from_revision: 0, wait_ms: 60_000 };
    let (registry, first) = (agent.registry(), request.clone());
    let waiting = tokio::spawn(async move { registry.watch(first).await });
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !hub.plain("GET", "/metrics", "").await.text().contains("cohort_hub_watches 1\n") {
        assert!(tokio::time::Instant::now() < deadline, "the watch never came");
    }
    let error = agent
        .send(Call::post("/v1/registry/watch", &Asked { request: &request, seen: None }))
        .await
        .unwrap_err();
    assert_eq!((error.status, error.kind.as_str()), (503, "overloaded"));
    let error = agent.registry().watch(request).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unavailable { .. }), "{error}");
    // A caller that leaves frees its slot.
    waiting.abort();
    let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
    while !hub.plain("GET", "/metrics", "").await.text().contains("cohort_hub_watches 0\n") {
        assert!(tokio::time::Instant::now() < deadline, "the watch never left");
    }
    hub.stop().await;
}
