//! Who may write what, over real mutual TLS, and the whole matrix of roles and routes.

use cohort_core::ids::{AppId, GroupId, Incarnation, MemberId, Platform, ServerId, Version};
use cohort_core::kill::KillScope;
use cohort_identity::Role;
use cohort_registry::attest::Attestation;
use cohort_registry::records::{
    BootstrapRecord, GroupRecord, GroupVerdict, MemberRecord, MembersRecord, SCHEMA, ServerRecord,
    Stamp, VerdictRecord, decode, encode,
};
use cohort_registry::typed::{
    bootstrap_group, get, read_server, write_group_record, write_members, write_verdict,
};
use cohort_registry::{Compare, FencedPut, Op, Registry as _, RegistryError, Selector, Txn, keys};
use cohort_wire::http::{Call, Client, Endpoint};

use crate::support::Running;

fn group(name: &str) -> GroupId {
    GroupId::new(name).unwrap()
}

fn app() -> AppId {
    AppId::new("web").unwrap()
}

fn stamp(index: u64) -> Stamp {
    Stamp { incarnation: Incarnation(1), term: 1, index }
}

fn record(of: &str, index: u64) -> GroupRecord {
    GroupRecord {
        schema: SCHEMA,
        group: group(of),
        app: app(),
        stamp: stamp(index),
        sequence: index,
        state: cohort_core::phase::PhaseName::Running,
        running: None,
        target: None,
        held_reason: None,
        since: 0,
    }
}

fn put(key: String, value: String) -> Txn {
    Txn { then: vec![Op::put(key, value)], ..Txn::default() }
}

fn forbidden<T: std::fmt::Debug>(result: Result<T, RegistryError>) {
    assert!(matches!(result, Err(RegistryError::Forbidden { .. })), "{result:?}");
}

fn invalid<T: std::fmt::Debug>(result: Result<T, RegistryError>) {
    assert!(matches!(result, Err(RegistryError::Invalid { .. })), "{result:?}");
}

#[tokio::test]
async fn an_agent_writes_what_belongs_to_its_own_group() {
    let hub = Running::start().await;
    let (_, agent) = hub.join_agent("a-1", "zone-a").await;
    hub.join_agent("b-1", "zone-b").await;
    let registry = agent.registry();
    let (own, other) = (group("intel.zone-a"), group("intel.zone-b"));
    let me = ServerId::new("a-1").unwrap();

    let first = bootstrap_group(&registry, &own, &me).await.unwrap();
    assert_eq!(first.first_server, me);
    let written = write_group_record(&registry, &record("intel.zone-a", 5)).await.unwrap();
    assert!(matches!(written, FencedPut::Written));
    let late = write_group_record(&registry, &record("intel.zone-a", 4)).await.unwrap();
    assert!(matches!(late, FencedPut::Late));
    let members = |group: GroupId| {
        let (server, address) = (me.clone(), "127.0.0.1:7417".to_owned());
        let only = MemberRecord { server, address, member: MemberId(1), voter: true };
        MembersRecord { schema: SCHEMA, group, stamp: stamp(1), members: vec![only] }
    };
    let written = write_members(&registry, &members(own.clone())).await.unwrap();
    assert!(matches!(written, FencedPut::Written));
    let verdict = |group: GroupId| GroupVerdict {
        app: app(),
        version: Version::new("1.0.0").unwrap(),
        platform: Platform::new("linux/amd64").unwrap(),
        group,
        record: VerdictRecord { schema: SCHEMA, bad: None, stamp: stamp(1) },
    };
    let written = write_verdict(&registry, &verdict(own.clone())).await.unwrap();
    assert!(matches!(written, FencedPut::Written));
    let mine = read_server(&registry, &me).await.unwrap().unwrap();
    let moved = ServerRecord { address: "127.0.0.1:9999".into(), ..mine.clone() };
    registry.txn(put(keys::server(&moved.server), encode(&moved))).await.unwrap();

    // No records of other servers.
    forbidden(write_group_record(&registry, &record("intel.zone-b", 5)).await);
    forbidden(write_members(&registry, &members(other.clone())).await);
    forbidden(write_verdict(&registry, &verdict(other.clone())).await);
    forbidden(bootstrap_group(&registry, &other, &me).await);
    let their = ServerRecord { server: ServerId::new("b-1").unwrap(), ..mine.clone() };
    forbidden(registry.txn(put(keys::server(&their.server), encode(&their))).await);
    // It cannot move itself to another group, nor delete itself.
    let elsewhere = ServerRecord { group: other, ..mine };
    forbidden(registry.txn(put(keys::server(&me), encode(&elsewhere))).await);
    let delete = Txn { then: vec![Op::Delete { key: keys::server(&me) }], ..Txn::default() };
    forbidden(registry.txn(delete).await);
    // No second incarnation of its group.
    let again = BootstrapRecord {
        schema: SCHEMA,
        group: own.clone(),
        incarnation: None,
        first_server: me.clone(),
        recovered_because: None,
    };
    forbidden(registry.txn(put(keys::bootstrap(&own), encode(&again))).await);
    // Nor the one that it is in, or an earlier one, as if it had been lost.
    let known = BootstrapRecord { incarnation: Some(first.incarnation), ..again };
    forbidden(registry.txn(put(keys::bootstrap(&own), encode(&known))).await);
    // No policies and no kill switches.
    forbidden(registry.txn(put(keys::policy(&app()), "{}".into())).await);
    forbidden(registry.txn(put(keys::kill(&KillScope::Fleet), "{}".into())).await);
    // Nothing that is not what it is called: others show it, dial it, and place voters by it.
    for hidden in ["\u{1b}[2J:1", "web\nhint: x:1", "\u{202e}:1", "web"] {
        let record = ServerRecord { address: hidden.into(), ..moved.clone() };
        invalid(registry.txn(put(keys::server(&me), encode(&record))).await);
        let rack = Some(hidden.to_owned()).filter(|rack| rack != "web");
        let labels = rack.iter().map(|label| ("zone".to_owned(), label.clone())).collect();
        let record = ServerRecord { labels, address: "web:1".into(), rack, ..moved.clone() };
        if record.rack.is_some() {
            invalid(registry.txn(put(keys::server(&me), encode(&record))).await);
        }
    }
    // No unknown keys, no malformed records, no records about something else.
    invalid(registry.txn(put("/elsewhere".into(), "{}".into())).await);
    invalid(registry.txn(put("/cohort/v1/groups/intel.zone-a/x".into(), "{}".into())).await);
    let own_record = keys::group_record(&own, &app());
    invalid(registry.txn(put(own_record.clone(), "no JSON".into())).await);
    invalid(registry.txn(put(own_record.clone(), encode(&record("intel.zone-b", 9)))).await);
    // A stale record is rejected even if its writer does not compare.
    let blind = registry.txn(put(own_record, encode(&record("intel.zone-a", 1)))).await;
    assert!(matches!(blind, Err(RegistryError::Conflict { .. })), "{blind:?}");
    hub.stop().await;
}

#[tokio::test]
async fn an_agent_that_the_hub_does_not_know_writes_nothing() {
    let hub = Running::start().await;
    let stranger = hub.client(Role::Agent, "never-joined").registry();
    let me = ServerId::new("never-joined").unwrap();
    forbidden(bootstrap_group(&stranger, &group("intel.zone-a"), &me).await);
    let record = ServerRecord {
        schema: SCHEMA,
        server: me,
        address: "127.0.0.1:1".into(),
        labels: Default::default(),
        rack: None,
        group: group("intel.zone-a"),
    };
    forbidden(stranger.txn(put(keys::server(&record.server), encode(&record))).await);
    hub.stop().await;
}

#[tokio::test]
async fn others_than_agents_change_the_registry_only_through_their_own_routes() {
    let hub = Running::start().await;
    hub.join_agent("a-1", "zone-a").await;
    for role in [Role::Viewer, Role::Operator, Role::Publisher, Role::Hub] {
        let registry = hub.client(role, "x").registry();
        forbidden(write_group_record(&registry, &record("intel.zone-a", 1)).await);
        forbidden(registry.txn(put(keys::policy(&app()), "{}".into())).await);
        forbidden(registry.txn(Txn::default()).await);
    }
    hub.stop().await;
}

/// Every role, nobody, and a server that was removed, and a request of each to every endpoint. Who
/// is refused is refused before its body is read: here it never comes.
#[tokio::test]
async fn the_table_of_roles_and_endpoints_holds_before_any_body_is_read() {
    let endpoints = cohort_hub::endpoints();
    let golden = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/roles.txt");
    cohort_base::golden::hold_text(&golden, &endpoints.to_string());
    let hub = Running::start().await;
    hub.join_agent("a-1", "zone-a").await;
    let (_, removed) = hub.join_agent("a-2", "zone-a").await;
    let path = cohort_wire::hub::server_path(&ServerId::new("a-2").unwrap());
    hub.operator().send(Call::new(http::Method::DELETE, path.as_str())).await.unwrap();
    let nobody = Client::joining(&hub.authority.fingerprint());
    let mut callers = vec![(None, nobody, true), (Some(Role::Agent), removed.client, false)];
    for role in Role::ALL {
        let name = if role == Role::Agent { "a-1" } else { "x" };
        callers.push((Some(role), hub.client(role, name).client, true));
    }
    for (role, client, in_fleet) in callers {
        for Endpoint { method, path, who } in &endpoints.0 {
            let admitted = in_fleet && who.admits(role);
            let path = path.replace("{server}", "a-9").replace("{app}", "web");
            let path = path.replace("{group}", "g").replace("{*path}", "metadata/timestamp.json");
            let what = format!("{role:?} {in_fleet} {method} {path}");
            let call = Call::new(method.clone(), path.as_str());
            let answer = if admitted {
                // No message: enough to be let in.
                client.call(&hub.target(), call.bytes("x")).await
            } else {
                let never = futures_util::stream::pending();
                client.upload(&hub.target(), call, Some(1000), never).await
            };
            let status = answer.map_or_else(|error| error.status(), |_| Some(200));
            let refused = status == Some(if role.is_some() { 403 } else { 401 });
            assert_eq!(refused, !admitted, "{what}: {status:?}");
        }
    }
    hub.stop().await;
}

#[tokio::test]
async fn without_a_certificate_only_joining_is_possible() {
    let hub = Running::start().await;
    let nobody = crate::support::Caller {
        client: cohort_wire::http::Client::joining(&hub.authority.fingerprint()),
        target: hub.target(),
    };
    for call in [Call::get("/v1/fleet"), Call::post("/v1/registry/txn", &Txn::default())] {
        let path = call.path.clone();
        let error = nobody.send(call).await.unwrap_err();
        assert_eq!((error.status, error.kind.as_str()), (401, "unauthenticated"), "{path}");
    }
    let metrics = hub.plain("GET", "/metrics", "").await;
    assert!(metrics.text().contains("cohort_hub_refused_total 2"), "{}", metrics.text());
    hub.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_writers_that_do_not_look_the_newest_stays() {
    let hub = Running::start().await;
    let (_, agent) = hub.join_agent("a-1", "zone-a").await;
    let key = keys::group_record(&group("intel.zone-a"), &app());
    let registry = std::sync::Arc::new(agent.registry());
    let mut writers = tokio::task::JoinSet::new();
    // Shuffled: 37 is coprime to 32.
    for nth in 0..32u64 {
        let (registry, key) = (std::sync::Arc::clone(&registry), key.clone());
        writers.spawn(async move {
            let record = record("intel.zone-a", (nth * 37) % 32);
            registry.txn(put(key, encode(&record))).await
        });
    }
    for written in writers.join_all().await {
        assert!(matches!(written, Ok(_) | Err(RegistryError::Conflict { .. })), "{written:?}");
    }
    let pair = get(&*registry, &key).await.unwrap().unwrap();
    assert_eq!(decode::<GroupRecord>(&pair).unwrap().stamp.index, 31);
    // Every write in the history is newer than the one before.
    let select = Selector::Key(key);
    let request = cohort_registry::WatchRequest { select, from_revision: 2, wait_ms: 0 };
    let mut last = None;
    for event in registry.watch(request).await.unwrap().events {
        let cohort_registry::Event::Put(pair) = event else { panic!("deleted") };
        let record: GroupRecord = decode(&pair).unwrap();
        assert!(last < Some(record.stamp), "{last:?} before {:?}", record.stamp);
        last = Some(record.stamp);
    }
    hub.stop().await;
}

/// One stolen key of a group's server decides nothing for the group.
#[tokio::test]
async fn an_agent_writes_its_groups_records_only_with_others_that_attest_them() {
    let hub = Running::start().await;
    let (_, first) = hub.join_agent("a-1", "zone-a").await;
    hub.join_agent("a-2", "zone-a").await;
    let (_, hostile) = hub.join_agent("a-3", "zone-a").await;
    hub.join_agent("b-1", "zone-b").await;
    let own = group("intel.zone-a");
    let members = |index, names: &[&str]| {
        let member = |name: &&str| MemberRecord {
            server: ServerId::new(*name).unwrap(),
            address: "127.0.0.1:7417".to_owned(),
            member: MemberId(1),
            voter: true,
        };
        let members = names.iter().map(member).collect();
        MembersRecord { schema: SCHEMA, group: own.clone(), stamp: stamp(index), members }
    };
    let (first, hostile) = (first.registry(), hostile.registry());
    // For the present state of the registry.
    let attested = async |by: &[&str], txn: &Txn| {
        let key = txn.then[0].key();
        let since = get(&first, key).await.unwrap().map_or(0, |pair| pair.mod_revision);
        let compare = vec![Compare::unchanged_since(key, since)];
        let sign = |name: &&str| {
            let identity = hub.identity(Role::Agent, name);
            Attestation::sign(&identity, &own, &compare, &txn.then).unwrap()
        };
        Txn { attested: by.iter().map(sign).collect(), compare: compare.clone(), ..txn.clone() }
    };
    bootstrap_group(&first, &own, &ServerId::new("a-1").unwrap()).await.unwrap();
    // The founder is alone; then there are three.
    let _ = write_members(&first, &members(1, &["a-1"])).await.unwrap();
    let all = ["a-1", "a-2", "a-3"];
    let three = put(keys::members(&own), encode(&members(2, &all)));
    forbidden(first.txn(three.clone()).await);
    assert!(first.txn(attested(&["a-2"], &three).await).await.unwrap().succeeded);

    let version = Version::new("1.0.0").unwrap();
    let platform = Platform::new("linux/amd64").unwrap();
    let key = keys::verdict(&app(), &version, &platform, &own);
    let verdict =
        put(key.clone(), encode(&VerdictRecord { schema: SCHEMA, bad: None, stamp: stamp(3) }));
    let of_its_own = put(keys::members(&own), encode(&members(u64::MAX, &["a-3"])));
    let gone = Txn { then: vec![Op::Delete { key }], ..Txn::default() };
    for txn in [&verdict, &of_its_own, &gone] {
        forbidden(hostile.txn(txn.clone()).await);
        // Its own signature, twice; that of another group's server; and one that is for something
        // else.
        forbidden(hostile.txn(attested(&["a-3", "a-3"], txn).await).await);
        forbidden(hostile.txn(attested(&["b-1"], txn).await).await);
        let other = attested(&["a-1"], &three).await.attested;
        let bound = attested(&[], txn).await;
        forbidden(hostile.txn(Txn { attested: other, ..bound }).await);
        // One that is bound to nothing could be used again.
        let unbound = Txn { compare: vec![], ..attested(&["a-1"], txn).await };
        forbidden(hostile.txn(unbound).await);
    }
    let once = attested(&["a-2"], &verdict).await;
    assert!(hostile.txn(once.clone()).await.unwrap().succeeded);
    assert!(!hostile.txn(once).await.unwrap().succeeded, "the record has changed since");
    let too_many = attested(&["a-2"; 33], &verdict).await;
    invalid(hostile.txn(too_many).await);
    hub.stop().await;
}
