//! Acknowledged writes survive a restart; a registry from a backup bootstraps nothing.

use cohort_core::ids::{GroupId, Incarnation, MemberId, ServerId};
use cohort_hub::{Hub, HubError};
use cohort_identity::{Authority, Role};
use cohort_registry::attest::Attestation;
use cohort_registry::fleet::Fleet;
use cohort_registry::records::{MemberRecord, MembersRecord, SCHEMA, ServerRecord, Stamp, encode};
use cohort_registry::typed::{
    Told, bootstrap_group, list, read_bootstrap, read_server, restore_bootstrap, tell_server,
    write_members,
};
use cohort_registry::{
    Compare, Op, OpenError, RangeRequest, Registry as _, RegistryError, Seen, SeenRecord, Selector,
    Txn, WatchRequest, keys,
};
use cohort_wire::http::{Call, Client};
use cohort_wire::hub::PolicyAnswer;
use cohort_wire::tls::IdentitySlot;

use crate::support::{Caller, Running, now, server};

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let hub = Running::start().await;
    let (_, agent) = hub.join_agent("a-1", "zone-a").await;
    let group = GroupId::new("intel.zone-a").unwrap();
    let me = ServerId::new("a-1").unwrap();
    let registry = agent.registry();
    let first = bootstrap_group(&registry, &group, &me).await.unwrap();
    let policy = serde_json::json!({ "app": "web", "channel": "stable" });
    let policy = hub.policy(policy).await;
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
    let agent = Caller { client: agent.client, target: hub.target() };
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
    let hub = copied(hub).await;
    let agent = Caller { client: agent.client, target: hub.target() };
    let group = GroupId::new("intel.zone-a").unwrap();
    let me = ServerId::new("a-1").unwrap();
    let error = bootstrap_group(&agent.registry(), &group, &me).await.unwrap_err();
    assert!(matches!(error, RegistryError::RestoredUnconfirmed), "{error}");
    let metrics = hub.plain("GET", "/metrics", "").await;
    assert!(metrics.text().contains("cohort_hub_registry_restored 1"));
    let hub = hub.restart_with(|_, config| config.confirm_restored = true).await;
    let agent = Caller { client: agent.client, target: hub.target() };
    bootstrap_group(&agent.registry(), &group, &me).await.unwrap();
    hub.stop().await;
}

/// Whatever a caller says of revisions, without proof, is a number.
#[tokio::test]
async fn no_reader_makes_the_registry_count_as_restored() {
    let hub = Running::start().await;
    let (_, agent) = hub.join_agent("a-1", "zone-a").await;
    let (_, removed) = hub.join_agent("a-2", "zone-a").await;
    let path = cohort_wire::hub::server_path(&ServerId::new("a-2").unwrap());
    hub.operator().send(Call::new(http::Method::DELETE, path.as_str())).await.unwrap();
    let unused = hub.token(Role::Agent, None).await;
    let before: Fleet = hub.operator().get("/v1/fleet").await.unwrap();
    let (forger, _folder) = {
        let folder = tempfile::tempdir().unwrap();
        (Authority::create(folder.path(), now()).unwrap(), folder)
    };
    let forged = Seen::new(1000, &forger.secret(Seen::PURPOSE));
    // For another revision, and the right number of digits.
    let moved = Seen { revision: 1000, ..Seen::new(2, &hub.authority.secret(Seen::PURPOSE)) };
    let elsewhere = Seen::new(1000, &hub.authority.secret("something else"));
    let registry = removed.registry();
    let error = read_server(&registry, &ServerId::new("a-1").unwrap()).await.unwrap_err();
    assert!(matches!(error, RegistryError::Forbidden { .. }), "{error}");
    let callers = [
        hub.client(Role::Viewer, "vera"),
        hub.client(Role::Operator, "ada"),
        hub.client(Role::Hub, "hub"),
        hub.client(Role::Agent, "never-joined"),
        Caller { client: agent.client.clone(), target: hub.target() },
    ];
    for caller in &callers {
        for seen in [None, Some(&forged), Some(&moved), Some(&elsewhere)] {
            let registry = caller.registry_that_saw(seen.cloned()).await;
            let select = Selector::Prefix("/".into());
            for from_revision in [1000, 1_000_000_000_000, u64::MAX] {
                let request = WatchRequest { select: select.clone(), from_revision, wait_ms: 0 };
                let error = registry.watch(request).await.unwrap_err();
                assert!(matches!(error, RegistryError::WentBack { .. }), "{error}");
            }
            let request = RangeRequest { select, after: None, limit: 1 };
            registry.range(request).await.unwrap();
            // An empty one; who may make it is another test's.
            let _ = registry.txn(Txn::default()).await;
        }
    }
    let hub = hub.restart().await;
    assert_eq!(hub.operator().get::<Fleet>("/v1/fleet").await.unwrap(), before);
    let agent = Caller { client: agent.client, target: hub.target() };
    let (group, me) = (GroupId::new("intel.zone-a").unwrap(), ServerId::new("a-1").unwrap());
    bootstrap_group(&agent.registry(), &group, &me).await.unwrap();
    let (answer, _) = hub.join(&unused, Role::Agent, "a-3", Some(server("zone-a"))).await;
    answer.expect("no token was revoked");
    hub.stop().await;
}

#[tokio::test]
async fn an_agent_that_can_prove_more_stops_bootstraps() {
    let hub = Running::start().await;
    let (_, agent) = hub.join_agent("a-1", "zone-a").await;
    let (_, removed) = hub.join_agent("a-2", "zone-a").await;
    let path = cohort_wire::hub::server_path(&ServerId::new("a-2").unwrap());
    hub.operator().send(Call::new(http::Method::DELETE, path.as_str())).await.unwrap();
    let hub = hub
        .restart_with(|data, _| {
            std::fs::copy(data.join("registry.redb"), data.join("backup")).unwrap();
        })
        .await;
    let policy = hub.policy(serde_json::json!({ "app": "web", "channel": "stable" })).await;
    hub.operator().post::<PolicyAnswer>("/v1/policies/web", &policy).await.unwrap();
    let (folder, me) = (tempfile::tempdir().unwrap(), ServerId::new("a-1").unwrap());
    let file = folder.path().join("seen.json");
    let agent = Caller { client: agent.client, target: hub.target() };
    let registry = agent.registry_with(SeenRecord::open(file.clone()));
    read_server(&registry, &me).await.unwrap();
    // Into the same file: nothing but what clients know shows it.
    let hub = hub
        .restart_with(|data, _| {
            let backup = std::fs::read(data.join("backup")).unwrap();
            std::fs::write(data.join("registry.redb"), backup).unwrap();
        })
        .await;
    let restored = async || hub.operator().get::<Fleet>("/v1/fleet").await.unwrap().restored;
    let unused = hub.token(Role::Agent, None).await;
    // It is for the servers of the fleet to say: a person's request changes nothing, nor does that
    // of a server which an operator removed.
    let viewer = hub.client(Role::Viewer, "vera");
    let removed = Caller { client: removed.client, target: hub.target() };
    for caller in [viewer, removed] {
        let registry = caller.registry_with(SeenRecord::open(file.clone()));
        let _ = read_server(&registry, &me).await;
        assert!(!restored().await);
    }
    // The agent's next process, by a read.
    let agent = Caller { client: agent.client, target: hub.target() };
    let registry = agent.registry_with(SeenRecord::open(file));
    read_server(&registry, &me).await.unwrap();
    assert!(restored().await);
    let (answer, _) = hub.join(&unused, Role::Agent, "a-3", Some(server("zone-a"))).await;
    assert_eq!(answer.unwrap_err().status, 403, "it may be from the same backup");
    let fresh = hub.token(Role::Agent, None).await;
    hub.join(&fresh, Role::Agent, "a-3", Some(server("zone-a"))).await.0.unwrap();
    let group = GroupId::new("intel.zone-a").unwrap();
    let error = bootstrap_group(&registry, &group, &me).await;
    assert!(matches!(error, Err(RegistryError::RestoredUnconfirmed)));
    hub.stop().await;
}

#[tokio::test]
async fn a_record_of_a_life_that_the_hub_never_began_is_taken_by_a_restored_one_only() {
    let hub = Running::start().await;
    let (_, agent) = hub.join_agent("a-1", "zone-a").await;
    hub.join_agent("a-2", "zone-a").await;
    let (group, me) = (GroupId::new("intel.zone-a").unwrap(), ServerId::new("a-1").unwrap());
    let members = |incarnation| {
        let stamp = Stamp { incarnation: Incarnation(incarnation), term: 1, index: 1 };
        let (server, address) = (me.clone(), "127.0.0.1:7417".to_owned());
        let only = MemberRecord { server, address, member: MemberId(1), voter: true };
        MembersRecord { schema: SCHEMA, group: group.clone(), stamp, members: vec![only] }
    };
    let error = write_members(&agent.registry(), &members(5000)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Forbidden { .. }), "{error}");
    assert!(!hub.operator().get::<Fleet>("/v1/fleet").await.unwrap().restored);
    let hub = copied(hub).await;
    let agent = Caller { client: agent.client, target: hub.target() };
    // One that no confirmation would skip.
    let error = write_members(&agent.registry(), &members(u64::MAX)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Forbidden { .. }), "{error}");
    // Nor one that one server writes alone.
    let error = write_members(&agent.registry(), &members(5000)).await.unwrap_err();
    assert!(matches!(error, RegistryError::Forbidden { .. }), "{error}");
    let key = keys::members(&group);
    let compare = vec![Compare::absent(&key)];
    let then = vec![Op::put(key, encode(&members(5000)))];
    let other = hub.identity(Role::Agent, "a-2");
    let attested = vec![Attestation::sign(&other, &group, &compare, &then).unwrap()];
    let written = agent.registry().txn(Txn { compare, then, attested }).await.unwrap();
    assert!(written.succeeded, "the group exists: its records are taken");
    let hub = hub.restart_with(|_, config| config.confirm_restored = true).await;
    let agent = Caller { client: agent.client, target: hub.target() };
    let next = bootstrap_group(&agent.registry(), &group, &me).await.unwrap();
    assert!(next.incarnation > Incarnation(5000), "and the next one is after it");
    hub.stop().await;
}

/// The hub, after its registry was replaced by a copy of itself.
async fn copied(hub: Running) -> Running {
    hub.restart_with(|data, _| {
        let copy = data.join("copy");
        std::fs::copy(data.join("registry.redb"), &copy).unwrap();
        std::fs::rename(&copy, data.join("registry.redb")).unwrap();
    })
    .await
}

/// The hub, after its registry was lost while it was stopped.
async fn lost(hub: Running) -> Running {
    hub.restart_with(|data, _| std::fs::remove_file(data.join("registry.redb")).unwrap()).await
}

#[tokio::test]
async fn a_lost_registry_is_built_again_from_what_certificates_prove() {
    let hub = Running::start().await;
    let (joined, agent) = hub.join_agent("a-1", "zone-a").await;
    let (_, late) = hub.join_agent("a-2", "zone-a").await;
    let a_2 = ServerId::new("a-2").unwrap();
    let a_2 = read_server(&late.registry(), &a_2).await.unwrap().unwrap();
    let group = joined.group.unwrap().group;
    let me = ServerId::new("a-1").unwrap();
    let first = bootstrap_group(&agent.registry(), &group, &me).await.unwrap();
    let own = read_server(&agent.registry(), &me).await.unwrap().unwrap();
    let hub = lost(hub).await;
    let agent = Caller { client: agent.client, target: hub.target() };
    let fleet: Fleet = hub.operator().get("/v1/fleet").await.unwrap();
    assert!(fleet.restored && fleet.groups.is_empty(), "{fleet:?}");
    // Only its certificate says which group it is in.
    let registry = agent.registry();
    assert_eq!(tell_server(&registry, &own).await.unwrap(), Told::Restored);
    let elsewhere = ServerRecord { group: GroupId::new("intel.zone-b").unwrap(), ..own.clone() };
    let error = tell_server(&registry, &elsewhere).await.unwrap_err();
    assert!(matches!(error, RegistryError::Forbidden { .. }), "{error}");
    // Nor does one server alone write for its group, before others have come back.
    let error = restore_bootstrap(&registry, &group, first.incarnation, &me).await.unwrap_err();
    assert!(matches!(error, RegistryError::Forbidden { .. }), "{error}");
    // No number is issued twice: an old group's incarnation, or a policy that it has seen already.
    let other = hub.join_agent("b-1", "zone-b").await;
    let (b_group, b) = (other.0.group.unwrap().group, ServerId::new("b-1").unwrap());
    let error = bootstrap_group(&other.1.registry(), &b_group, &b).await.unwrap_err();
    assert!(matches!(error, RegistryError::RestoredUnconfirmed), "{error}");
    let policy = serde_json::json!({ "app": "web", "channel": "stable" });
    let policy = hub.policy(policy).await;
    let error = hub.operator().post::<PolicyAnswer>("/v1/policies/web", &policy).await.unwrap_err();
    assert_eq!((error.status, error.kind.as_str()), (409, "restored"));
    assert!(error.hints[0].contains("--confirm-restored"), "{error:?}");
    let unused = hub.token(Role::Agent, None).await;
    let hub = hub.restart_with(|_, config| config.confirm_restored = true).await;
    let registry = Caller { client: agent.client, target: hub.target() }.registry();
    assert!(restore_bootstrap(&registry, &group, first.incarnation, &me).await.unwrap());
    let read = read_bootstrap(&registry, &group).await.unwrap().unwrap();
    assert_eq!((read.incarnation, read.restored), (first.incarnation, true));
    let (answer, _) = hub.join(&unused, Role::Agent, "a-3", Some(server("zone-a"))).await;
    assert_eq!(answer.unwrap_err().status, 403, "it may have been used after the backup");
    // A server that returns later than the confirmation is no new loss.
    let late = Caller { client: late.client, target: hub.target() };
    assert_eq!(tell_server(&late.registry(), &a_2).await.unwrap(), Told::Restored);
    let policy = hub.policy(serde_json::json!({ "app": "web", "channel": "stable" })).await;
    let revision: PolicyAnswer = hub.operator().post("/v1/policies/web", &policy).await.unwrap();
    assert!(revision.revision.0 > 1_000_000_000, "beyond any that was issued: {revision:?}");
    let fleet: Fleet = hub.operator().get("/v1/fleet").await.unwrap();
    assert!(!fleet.restored && fleet.groups.contains_key(&group), "{fleet:?}");
    hub.stop().await;
}

#[tokio::test]
async fn a_loss_is_not_confirmed_by_the_start_that_finds_it() {
    let hub = Running::start().await;
    hub.join_agent("a-1", "zone-a").await;
    let (_folder, _, mut config) = hub.stop().await;
    std::fs::remove_file(config.data_dir.join("registry.redb")).unwrap();
    config.confirm_restored = true;
    for _ in 0..2 {
        let refused = Hub::start(config.clone()).await.err();
        assert!(matches!(refused, Some(HubError::ConfirmedTooEarly)), "{refused:?}");
        std::fs::remove_file(config.data_dir.join("registry.redb")).unwrap();
    }
}

/// A flag that stays in a unit would confirm the next loss before anybody has seen it.
#[tokio::test]
async fn what_was_not_lost_is_not_confirmed() {
    let hub = Running::start().await;
    hub.join_agent("a-1", "zone-a").await;
    let (_folder, _, mut config) = hub.stop().await;
    config.confirm_restored = true;
    let refused = Hub::start(config.clone()).await.err();
    assert!(matches!(refused, Some(HubError::NothingToConfirm)), "{refused:?}");
    config.confirm_restored = false;
    let running = Hub::start(config.clone()).await.unwrap();
    config.confirm_restored = true;
    let refused = Hub::start(config).await.err();
    let in_use = |error: &HubError| matches!(error, HubError::Registry(OpenError::InUse { .. }));
    assert!(refused.as_ref().is_some_and(in_use), "{refused:?}");
    drop(running);
}

#[tokio::test]
async fn a_name_that_the_registry_has_is_taken_whatever_became_of_its_token() {
    let hub = Running::start().await;
    hub.join_agent("a-1", "zone-a").await;
    let tokens_lost = |_: &std::path::Path, config: &mut cohort_hub::HubConfig| {
        std::fs::remove_dir_all(config.data_dir.join("tokens")).unwrap();
    };
    let hub = hub.restart_with(tokens_lost).await;
    let token = hub.token(Role::Agent, None).await;
    let (answer, _) = hub.join(&token, Role::Agent, "a-1", Some(server("zone-a"))).await;
    assert_eq!(answer.unwrap_err().status, 409);
    hub.join(&token, Role::Agent, "a-2", Some(server("zone-a"))).await.0.unwrap();
    hub.stop().await;
}

#[tokio::test]
async fn a_removed_server_does_not_come_back_with_an_older_registry() {
    let hub = Running::start().await;
    let (_, agent) = hub.join_agent("a-1", "zone-a").await;
    let (_, stays) = hub.join_agent("a-2", "zone-a").await;
    let me = ServerId::new("a-1").unwrap();
    let [own, other] = ["a-1", "a-2"].map(|name| ServerId::new(name).unwrap());
    let own = read_server(&agent.registry(), &own).await.unwrap().unwrap();
    let other = read_server(&agent.registry(), &other).await.unwrap().unwrap();
    let (_, dead) = hub.join_agent("a-3", "zone-a").await;
    let a_3 = ServerId::new("a-3").unwrap();
    let third = read_server(&dead.registry(), &a_3).await.unwrap().unwrap();
    let path = cohort_wire::hub::server_path(&me);
    hub.operator().send(Call::new(http::Method::DELETE, path.as_str())).await.unwrap();
    let hub = lost(hub).await;
    // One that the hub has forgotten can be removed as well.
    let path = cohort_wire::hub::server_path(&a_3);
    hub.operator().send(Call::new(http::Method::DELETE, path.as_str())).await.unwrap();
    let dead = Caller { client: dead.client, target: hub.target() };
    let error = tell_server(&dead.registry(), &third).await.unwrap_err();
    assert!(matches!(error, RegistryError::Forbidden { .. }), "{error}");
    let [agent, stays] =
        [agent, stays].map(|it| Caller { client: it.client, target: hub.target() });
    let error = tell_server(&agent.registry(), &own).await.unwrap_err();
    assert!(matches!(error, RegistryError::Forbidden { .. }), "{error}");
    assert_eq!(tell_server(&stays.registry(), &other).await.unwrap(), Told::Restored);
    // Joining again with a token that an operator made is what brings it back.
    let token = hub.token(Role::Agent, Some("a-1")).await;
    let (answer, again) = hub.join(&token, Role::Agent, "a-1", Some(server("zone-a"))).await;
    answer.unwrap();
    let client = Client::new(IdentitySlot::new(again.unwrap()));
    let again = Caller { client, target: hub.target() };
    assert_eq!(tell_server(&again.registry(), &own).await.unwrap(), Told::Known);
    // The certificate of before its removal counts no more than it did, also after a restart.
    let hub = hub.restart().await;
    let agent = Caller { client: agent.client, target: hub.target() };
    let moved = ServerRecord { address: "127.0.0.1:1".into(), ..own };
    let error = tell_server(&agent.registry(), &moved).await.unwrap_err();
    assert!(matches!(error, RegistryError::Forbidden { .. }), "{error}");
    hub.stop().await;
}

#[tokio::test]
async fn an_agent_that_the_registry_forgot_shows_that_it_is_an_older_one() {
    let hub = Running::start().await;
    hub.join_agent("a-1", "zone-a").await;
    let hub = hub
        .restart_with(|data, _| {
            std::fs::copy(data.join("registry.redb"), data.join("backup")).unwrap();
        })
        .await;
    let (_, late) = hub.join_agent("a-2", "zone-a").await;
    let me = ServerId::new("a-2").unwrap();
    let own = read_server(&late.registry(), &me).await.unwrap().unwrap();
    // Into the same file: nothing but what clients know shows it.
    let hub = hub
        .restart_with(|data, _| {
            let backup = std::fs::read(data.join("backup")).unwrap();
            std::fs::write(data.join("registry.redb"), backup).unwrap();
        })
        .await;
    let restored = async || hub.operator().get::<Fleet>("/v1/fleet").await.unwrap().restored;
    assert!(!restored().await);
    let late = Caller { client: late.client, target: hub.target() };
    assert_eq!(tell_server(&late.registry(), &own).await.unwrap(), Told::Restored);
    assert!(restored().await);
    hub.stop().await;
}
