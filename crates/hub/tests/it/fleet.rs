//! Policies, watches and the incarnations of a group, over real mutual TLS.

use std::path::Path;
use std::time::Duration;

use cohort_core::ids::{GroupId, Revision, ServerId};
use cohort_identity::Role;
use cohort_registry::fleet::Fleet;
use cohort_registry::typed::{bootstrap_group, intents, read_bootstrap, read_server, tell_server};
use cohort_registry::{
    EmbeddedRegistry, Op, Registry as _, RegistryError, Selector, Txn, WatchRequest, keys,
};
use cohort_wire::http::{Call, Client};
use cohort_wire::hub::{
    PolicyAnswer, PolicyRequest, RecoverAnswer, RecoverRequest, RemoveAppAnswer, RemoveAppRequest,
    RemoveGroupRequest,
};
use cohort_wire::intent::{AppIntent, SignedIntent};
use cohort_wire::tls::IdentitySlot;

use crate::support::Running;

fn policy(channel: &str) -> serde_json::Value {
    serde_json::json!({
        "app": "web", "channel": channel,
        "update": { "max_parallel": ["1", "50%"] },
        "stage": [{ "zone": "zone-a" }, { "zone": "zone-b" }],
    })
}

#[tokio::test]
async fn a_policy_is_written_checked_and_watched_for() {
    let hub = Running::start().await;
    let (_, agent) = hub.join_agent("a-1", "zone-a").await;
    let registry = agent.registry();
    let (_, revision) = cohort_registry::typed::list(&registry, keys::POLICIES).await.unwrap();
    let select = Selector::Prefix(keys::POLICIES.to_owned());
    let request = WatchRequest { select, from_revision: revision + 1, wait_ms: 30_000 };
    let waiting = tokio::spawn(async move { registry.watch(request).await });

    let operator = hub.operator();
    let request = hub.policy(policy("stable")).await;
    let first: PolicyAnswer = operator.post("/v1/policies/web", &request).await.unwrap();
    let told = tokio::time::timeout(Duration::from_secs(20), waiting).await;
    let told = told.expect("in time").unwrap().unwrap();
    assert_eq!(told.events.len(), 1);
    assert_eq!(told.events[0].revision(), first.revision.0);

    let registry = agent.registry();
    let (app, read) = intents(&registry, keys::POLICIES).await.unwrap().pop().unwrap();
    assert_eq!((app.as_str(), &read), ("web", &request.signed));
    assert_eq!(read.unverified().unwrap().revision, first.revision);

    // Only over the revision that the caller has seen.
    let beta = hub.policy(policy("beta")).await;
    let stale = PolicyRequest { expected: Some(Revision(1)), ..beta.clone() };
    let error = operator.post::<PolicyAnswer>("/v1/policies/web", &stale).await.unwrap_err();
    assert_eq!(error.status, 409);
    let seen = PolicyRequest { expected: Some(first.revision), ..beta };
    operator.post::<PolicyAnswer>("/v1/policies/web", &seen).await.unwrap();
    let error = operator.post::<PolicyAnswer>("/v1/policies/web", &request).await.unwrap_err();
    assert_eq!(error.status, 409, "an earlier one");

    // The error names the wrong key.
    let mut wrong = policy("stable");
    wrong["update"]["max_paralel"] = serde_json::json!(3);
    let wrong = hub.policy(wrong).await;
    let error = operator.post::<PolicyAnswer>("/v1/policies/web", &wrong).await.unwrap_err();
    assert_eq!(error.status, 400);
    assert!(error.error.contains("max_paralel"), "{error}");
    let other = hub.policy(policy("x")).await;
    let error = operator.post::<PolicyAnswer>("/v1/policies/other", &other).await;
    assert_eq!(error.unwrap_err().status, 400, "a policy for another app");
    let remove = RemoveAppRequest { signed: other.signed, mid_rollout: true };
    let error = operator.post::<RemoveAppAnswer>("/v1/policies/web/remove", &remove).await;
    assert_eq!(error.unwrap_err().status, 400, "a policy is not a removal");
    hub.stop().await;
}

/// An operator's certificate lets it call; what it passes on has to be signed by an operator, too.
#[tokio::test]
async fn a_policy_that_no_operator_signed_is_refused() {
    let hub = Running::start().await;
    let operator = hub.operator();
    let request = hub.policy(policy("stable")).await;
    let mut forged = request.clone();
    let body = String::from_utf8(forged.signed.0.body).unwrap().replace("stable", "canary");
    forged.signed.0.body = body.into_bytes();
    let error = operator.post::<PolicyAnswer>("/v1/policies/web", &forged).await.unwrap_err();
    assert_eq!(error.status, 403);
    let intent = request.signed.unverified().unwrap();
    let viewer = SignedIntent::sign(&hub.identity(Role::Viewer, "eve"), &intent).unwrap();
    let forged = PolicyRequest { signed: viewer, ..request };
    let error = operator.post::<PolicyAnswer>("/v1/policies/web", &forged).await.unwrap_err();
    assert_eq!(error.status, 403);
    let beyond = AppIntent { revision: Revision(1 << 40), ..intent };
    let beyond = SignedIntent::sign(&hub.identity(Role::Operator, "ada"), &beyond).unwrap();
    let request = PolicyRequest { signed: beyond, expected: None };
    let error = operator.post::<PolicyAnswer>("/v1/policies/web", &request).await.unwrap_err();
    assert_eq!(error.status, 409, "groups would take the registry for a restored one");
    let fleet: Fleet = operator.get("/v1/fleet").await.unwrap();
    assert!(fleet.policies.is_empty());
    hub.stop().await;
}

#[tokio::test]
async fn a_group_is_recovered_by_an_operator_who_knows_its_life() {
    let hub = Running::start().await;
    let (_, agent) = hub.join_agent("a-1", "zone-a").await;
    hub.join_agent("b-1", "zone-b").await;
    let registry = agent.registry();
    let group = GroupId::new("intel.zone-a").unwrap();
    let me = ServerId::new("a-1").unwrap();
    let first = bootstrap_group(&registry, &group, &me).await.unwrap();
    let path = cohort_wire::hub::recover_path(&group);
    let mut request = RecoverRequest {
        incarnation: first.incarnation.next(),
        first_server: me.clone(),
        because: "two of three disks lost".into(),
    };
    let operator = hub.operator();
    let error = operator.post::<RecoverAnswer>(&path, &request).await.unwrap_err();
    assert_eq!(error.status, 409);
    request.incarnation = first.incarnation;
    let foreign = RecoverRequest { first_server: ServerId::new("b-1").unwrap(), ..request.clone() };
    let error = operator.post::<RecoverAnswer>(&path, &foreign).await.unwrap_err();
    assert_eq!(error.status, 400, "a server of another group");
    let next: RecoverAnswer = operator.post(&path, &request).await.unwrap();
    assert!(next.incarnation > first.incarnation);
    let read = read_bootstrap(&registry, &group).await.unwrap().unwrap();
    assert_eq!((read.incarnation, read.first_server), (next.incarnation, me));
    hub.stop().await;
}

#[tokio::test]
async fn a_hub_that_is_away_is_told_apart_from_one_that_says_no() {
    let hub = Running::start().await;
    let registry = hub.client(Role::Viewer, "vera").registry();
    let group = GroupId::new("web").unwrap();
    assert_eq!(read_bootstrap(&registry, &group).await.unwrap(), None);
    hub.stop().await;
    let error = read_bootstrap(&registry, &group).await.unwrap_err();
    assert!(matches!(error, RegistryError::Unavailable { .. }), "{error}");
}

#[tokio::test]
async fn a_group_whose_servers_are_gone_is_removed_with_all_that_waits_for_it() {
    let hub = Running::start().await;
    let (_, agent) = hub.join_agent("a-1", "zone-a").await;
    hub.join_agent("b-1", "zone-b").await;
    let group = GroupId::new("intel.zone-a").unwrap();
    let me = ServerId::new("a-1").unwrap();
    bootstrap_group(&agent.registry(), &group, &me).await.unwrap();
    let path = cohort_wire::hub::remove_group_path(&group);
    // A group that has just called lives, whatever the operator says.
    let living = RemoveGroupRequest { servers_are_lost: true };
    let refused = hub.operator().post::<()>(&path, &living).await.unwrap_err();
    assert_eq!(refused.status, 409);
    assert!(refused.error.contains("a-1"), "{refused:?}");
    let hub = hub.restart().await;
    let refused = hub.operator().post::<()>(&path, &living).await.unwrap_err();
    assert_eq!(refused.status, 409, "a hub that has just started has heard nobody yet");
    let hub = hub.restart_with(|_, config| config.group_silent = Duration::ZERO).await;
    let agent = crate::support::Caller { client: agent.client, target: hub.target() };
    let request = |servers_are_lost| RemoveGroupRequest { servers_are_lost };
    let operator = hub.operator();
    let refused = agent.post::<()>(&path, &request(true)).await.unwrap_err();
    assert_eq!(refused.status, 403);
    let refused = operator.post::<()>(&path, &request(false)).await.unwrap_err();
    assert_eq!(refused.status, 409);
    assert!(refused.hints[0].contains("--servers-are-lost"), "{:?}", refused.hints);
    operator.post::<()>(&path, &request(true)).await.unwrap();
    let fleet: Fleet = operator.get("/v1/fleet").await.unwrap();
    assert_eq!(fleet.groups.keys().map(GroupId::as_str).collect::<Vec<_>>(), ["intel.zone-b"]);
    assert_eq!(fleet.servers.len(), 1);
    let error = bootstrap_group(&agent.registry(), &group, &me).await.unwrap_err();
    assert!(matches!(error, RegistryError::Forbidden { .. }), "it does not come back: {error}");
    assert_eq!(operator.post::<()>(&path, &request(true)).await.unwrap_err().status, 404);
    hub.stop().await;
}

#[tokio::test]
async fn a_server_without_a_record_is_removed_too() {
    let hub = Running::start().await;
    let (_, agent) = hub.join_agent("a-1", "zone-a").await;
    let me = ServerId::new("a-1").unwrap();
    let own = read_server(&agent.registry(), &me).await.unwrap().unwrap();
    let path = cohort_wire::hub::server_path(&me);
    // A crash between the two halves of a removal, or a registry that has lost the record.
    let hub = hub
        .restart_with(|data, _| {
            let path = data.join("registry.redb");
            let then = vec![Op::Delete { key: keys::server(&own.server) }];
            std::thread::spawn(move || make(&path, Txn { then, ..Txn::default() })).join().unwrap();
        })
        .await;
    hub.operator().send(Call::new(http::Method::DELETE, path)).await.unwrap();
    let agent = crate::support::Caller { client: agent.client, target: hub.target() };
    let error = tell_server(&agent.registry(), &own).await.unwrap_err();
    assert!(matches!(error, RegistryError::Forbidden { .. }), "it does not come back: {error}");
    hub.stop().await;
}

#[tokio::main(flavor = "current_thread")]
async fn make(registry: &Path, txn: Txn) {
    EmbeddedRegistry::open(registry, "").unwrap().txn(txn).await.unwrap();
}

#[tokio::test]
async fn a_removed_server_is_forgotten_and_comes_back_only_with_a_token_for_its_name() {
    let hub = Running::start().await;
    let (_, agent) = hub.join_agent("a-1", "zone-a").await;
    let path = cohort_wire::hub::server_path(&ServerId::new("a-1").unwrap());
    let delete = || Call::new(http::Method::DELETE, path.as_str());
    assert_eq!(agent.send(delete()).await.unwrap_err().status, 403);
    let operator = hub.operator();
    operator.send(delete()).await.unwrap();
    operator.send(delete()).await.expect("a repeat after a lost answer");
    let group = GroupId::new("intel.zone-a").unwrap();
    let me = ServerId::new("a-1").unwrap();
    let error = bootstrap_group(&agent.registry(), &group, &me).await.unwrap_err();
    assert!(matches!(error, RegistryError::Forbidden { .. }), "{error}");
    let token = hub.token(Role::Agent, Some("a-1")).await;
    let server = crate::support::server("zone-a");
    let (answer, again) = hub.join(&token, Role::Agent, "a-1", Some(server)).await;
    answer.unwrap();
    let client = Client::new(IdentitySlot::new(again.unwrap()));
    let again = crate::support::Caller { client, target: hub.target() };
    bootstrap_group(&again.registry(), &group, &me).await.unwrap();
    hub.stop().await;
}
