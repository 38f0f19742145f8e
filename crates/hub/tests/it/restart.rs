//! Acknowledged writes survive a restart; a registry from a backup bootstraps nothing.

use cohort_core::ids::{GroupId, Incarnation, ServerId};
use cohort_identity::Role;
use cohort_registry::fleet::Fleet;
use cohort_registry::records::{MembersRecord, SCHEMA, Stamp};
use cohort_registry::typed::{bootstrap_group, list, write_members};
use cohort_registry::{FencedPut, Registry as _, RegistryError, Selector, WatchRequest, keys};
use cohort_wire::hub::PolicyAnswer;

use crate::support::{Running, server};

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let hub = Running::start().await;
    let (_, agent) = hub.join_agent("a-1", "zone-a").await;
    let group = GroupId::new("intel.zone-a").unwrap();
    let me = ServerId::new("a-1").unwrap();
    let registry = agent.registry();
    let first = bootstrap_group(&registry, &group, &me).await.unwrap();
    let policy = serde_json::json!({ "policy": { "app": "web", "channel": "stable" } });
    hub.operator().post::<PolicyAnswer>("/v1/policies/web", &policy).await.unwrap();
    let unused = hub.token(Role::Agent, None).await;
    let (used, _) = {
        let token = hub.token(Role::Agent, None).await;
        hub.join(&token, Role::Agent, "a-2", Some(server("zone-a"))).await.0.unwrap();
        (token, ())
    };
    let before: Fleet = hub.operator().get("/v1/fleet").await.unwrap();
    let (_, seen) = list(&agent.registry(), keys::ROOT).await.unwrap();

    let hub = hub.restart().await;
    let after: Fleet = hub.operator().get("/v1/fleet").await.unwrap();
    assert_eq!(after, before);
    let (answer, _) = hub.join(&used, Role::Agent, "a-3", Some(server("zone-a"))).await;
    assert_eq!(answer.unwrap_err().status, 403, "a used token stays used");
    let (answer, _) = hub.join(&unused, Role::Agent, "a-3", Some(server("zone-a"))).await;
    answer.expect("an unused one stays good");
    // The agent's certificate is still valid, its watch continues, and the incarnation is the same.
    let agent = crate::support::Caller { client: agent.client, target: hub.target() };
    let select = Selector::Prefix(keys::SERVERS.to_owned());
    let request = WatchRequest { select, from_revision: seen + 1, wait_ms: 30_000 };
    let told = agent.registry().watch(request).await.unwrap();
    assert_eq!(told.events.len(), 1);
    assert_eq!(bootstrap_group(&agent.registry(), &group, &me).await.unwrap(), first);
    hub.stop().await;
}

#[tokio::test]
async fn a_hub_from_a_backup_bootstraps_nothing_until_it_is_confirmed() {
    let hub = Running::start().await;
    let (_, agent) = hub.join_agent("a-1", "zone-a").await;
    let hub = hub
        .restart_with(|data, _| {
            let copy = data.join("copy");
            std::fs::copy(data.join("registry.redb"), &copy).unwrap();
            std::fs::rename(&copy, data.join("registry.redb")).unwrap();
        })
        .await;
    let agent = crate::support::Caller { client: agent.client, target: hub.target() };
    let group = GroupId::new("intel.zone-a").unwrap();
    let me = ServerId::new("a-1").unwrap();
    let error = bootstrap_group(&agent.registry(), &group, &me).await.unwrap_err();
    assert!(matches!(error, RegistryError::RestoredUnconfirmed), "{error}");
    let metrics = hub.plain("GET", "/metrics", "").await;
    assert!(metrics.text().contains("cohort_hub_registry_restored 1"));
    let hub = hub.restart_with(|_, config| config.confirm_restored = true).await;
    let agent = crate::support::Caller { client: agent.client, target: hub.target() };
    bootstrap_group(&agent.registry(), &group, &me).await.unwrap();
    hub.stop().await;
}

#[tokio::test]
async fn an_agent_that_has_seen_more_stops_bootstraps() {
    let hub = Running::start().await;
    let (_, agent) = hub.join_agent("a-1", "zone-a").await;
    let registry = agent.registry();
    let select = Selector::Prefix("/".into());
    let request = WatchRequest { select, from_revision: 1000, wait_ms: 0 };
    let error = registry.watch(request).await.unwrap_err();
    assert!(matches!(error, RegistryError::WentBack { asked: 999, .. }), "{error}");
    let group = GroupId::new("intel.zone-a").unwrap();
    let error = bootstrap_group(&registry, &group, &ServerId::new("a-1").unwrap()).await;
    assert!(matches!(error, Err(RegistryError::RestoredUnconfirmed)));
    hub.stop().await;
}

#[tokio::test]
async fn a_record_of_a_life_that_the_hub_never_began_stops_bootstraps() {
    let hub = Running::start().await;
    let (_, agent) = hub.join_agent("a-1", "zone-a").await;
    let group = GroupId::new("intel.zone-a").unwrap();
    let stamp = Stamp { incarnation: Incarnation(5000), term: 1, index: 1 };
    let members = MembersRecord { schema: SCHEMA, group: group.clone(), stamp, members: vec![] };
    let error = write_members(&agent.registry(), &members).await.unwrap_err();
    assert!(matches!(error, RegistryError::RestoredUnconfirmed), "{error}");
    let me = ServerId::new("a-1").unwrap();
    let error = bootstrap_group(&agent.registry(), &group, &me).await;
    assert!(matches!(error, Err(RegistryError::RestoredUnconfirmed)));
    let hub = hub.restart_with(|_, config| config.confirm_restored = true).await;
    let agent = crate::support::Caller { client: agent.client, target: hub.target() };
    let written = write_members(&agent.registry(), &members).await.unwrap();
    assert!(matches!(written, FencedPut::Written), "the old incarnation continues");
    let next = bootstrap_group(&agent.registry(), &group, &me).await.unwrap();
    assert!(next.incarnation > stamp.incarnation, "and the next one is after it");
    hub.stop().await;
}
