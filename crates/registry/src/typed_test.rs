use std::collections::BTreeMap;

use cohort_core::ids::{AppId, GroupId, Incarnation, Platform, Revision, ServerId, Version};
use cohort_core::kill::KillScope;
use cohort_core::phase::PhaseName;
use cohort_core::reason::Reason;
use cohort_identity::SignedStatement;
use cohort_wire::intent::{AppIntent, SignedIntent, Wanted};

use crate::api::{Op, Registry, RegistryError, Txn};
use crate::embedded::EmbeddedRegistry;
use crate::fleet::read_fleet;
use crate::keys::{self, Place};
use crate::records::{
    GroupInfo, GroupRecord, GroupVerdict, SCHEMA, ServerRecord, Stamp, VerdictRecord, encode,
};
use crate::typed::{
    FencedPut, IntentPut, Told, VERDICT_VERSIONS_MAX, bootstrap_group, forget_ghosts,
    forget_old_verdicts, group_infos, intents, read_bootstrap, read_group_record, read_server,
    recover_group, remove_group, restore_bootstrap, tell_server, write_group_info,
    write_group_record, write_intent, write_verdict,
};

fn group(name: &str) -> GroupId {
    GroupId::new(name).expect("valid")
}

fn app() -> AppId {
    AppId::new("web").expect("valid")
}

fn version(text: &str) -> Version {
    Version::new(text).expect("valid")
}

fn server(name: &str) -> ServerId {
    ServerId::new(name).expect("valid")
}

fn platform() -> Platform {
    Platform::new("linux/amd64").expect("valid")
}

fn stamp(incarnation: u64, term: u64, index: u64) -> Stamp {
    Stamp { incarnation: Incarnation(incarnation), term, index }
}

fn in_memory() -> EmbeddedRegistry {
    let backend = redb::backends::InMemoryBackend::new();
    let database = redb::Database::builder().create_with_backend(backend).expect("memory");
    EmbeddedRegistry::open_database(database).expect("empty")
}

async fn apps(registry: &EmbeddedRegistry) -> Vec<GroupRecord> {
    let mut fleet = read_fleet(registry).await.expect("read");
    fleet.groups.remove(&group("intel.zone-a")).expect("there").apps
}

fn record(stamp: Stamp, state: PhaseName) -> GroupRecord {
    GroupRecord {
        schema: SCHEMA,
        group: group("intel.zone-a"),
        app: app(),
        stamp,
        sequence: 1,
        state,
        running: Some(version("1.0.0")),
        target: None,
        held_reason: None,
        since: 0,
    }
}

#[tokio::test]
async fn a_late_writer_changes_nothing() {
    let registry = in_memory();
    let newer = record(stamp(2, 5, 9), PhaseName::Running);
    let written = write_group_record(&registry, &newer).await.expect("write");
    assert!(matches!(written, FencedPut::Written));
    for late in [stamp(2, 5, 8), stamp(2, 4, 99), stamp(1, 99, 99)] {
        let put =
            write_group_record(&registry, &record(late, PhaseName::Held)).await.expect("write");
        assert_eq!(put, FencedPut::Late);
    }
    assert_eq!(
        write_group_record(&registry, &newer).await.expect("write"),
        FencedPut::Unchanged,
        "writing again is harmless"
    );
    assert_eq!(apps(&registry).await, vec![newer]);
    let next = record(stamp(3, 1, 1), PhaseName::Held);
    let put = write_group_record(&registry, &next).await.expect("write");
    assert!(matches!(put, FencedPut::Written), "a newer incarnation wins over any index");
    assert_eq!(apps(&registry).await, vec![next]);
}

#[tokio::test]
async fn a_record_of_a_later_schema_is_not_read_and_not_overwritten() {
    let registry = in_memory();
    let key = keys::group_record(&group("intel.zone-a"), &app());
    let txn = Txn { then: vec![Op::put(&key, r#"{"schema":7}"#)], ..Txn::default() };
    registry.txn(txn).await.expect("put");
    let write = write_group_record(&registry, &record(stamp(9, 9, 9), PhaseName::Running)).await;
    let error = write.expect_err("refused");
    assert!(matches!(&error, RegistryError::Corrupt { key: named, .. } if *named == key));
    assert!(cohort_base::chain(&error).contains("schema 7"), "{error:?}");
}

#[tokio::test]
async fn a_group_begins_once_and_only_recover_begins_it_again() {
    let registry = in_memory();
    let name = group("web");
    let first = bootstrap_group(&registry, &name, &server("a")).await.expect("bootstraps");
    let again = bootstrap_group(&registry, &name, &server("b")).await.expect("bootstraps");
    assert_eq!(first, again);
    assert_eq!(first.first_server, server("a"));
    let old = Incarnation(first.incarnation.0 + 7);
    let wrong = recover_group(&registry, &name, old, &server("b"), "lost").await.expect("asked");
    assert_eq!(wrong, None);
    let next = recover_group(&registry, &name, first.incarnation, &server("b"), "lost")
        .await
        .expect("asked")
        .expect("recovered");
    assert!(next.incarnation > first.incarnation);
    assert_eq!(read_bootstrap(&registry, &name).await.expect("read"), Some(next));
}

#[tokio::test]
async fn a_group_tells_its_incarnation_to_a_registry_that_has_none_or_an_earlier_one() {
    let registry = in_memory();
    let (name, a) = (group("web"), server("a"));
    let restore = async |n| restore_bootstrap(&registry, &name, Incarnation(n), &a).await;
    assert!(restore(4_000).await.expect("restored"));
    let again = bootstrap_group(&registry, &name, &server("b")).await.expect("bootstraps");
    assert_eq!((again.incarnation, again.restored), (Incarnation(4_000), true));
    assert!(!restore(3_999).await.expect("read"), "of an earlier incarnation");
    assert!(!restore(4_000).await.expect("read"), "once");
    assert!(restore(4_001).await.expect("restored"));
    let of_it = |n| recover_group(&registry, &name, Incarnation(n), &a, "lost");
    assert_eq!(of_it(4_000).await.expect("asked"), None);
    let next = of_it(4_001).await.expect("asked").expect("recovered");
    assert!(!next.restored, "an operator's decision: {next:?}");
    assert_eq!(read_bootstrap(&registry, &name).await.expect("read"), Some(next));
}

/// What somebody wants of the app; the registry does not verify who.
fn intent(revision: u64, channel: Option<&str>) -> (SignedIntent, AppIntent) {
    let wanted = channel.map_or(Wanted::Removal, |channel| {
        Wanted::Policy(serde_json::json!({ "app": "web", "channel": channel }))
    });
    let intent = AppIntent { app: app(), revision: Revision(revision), wanted, at: 1 };
    let body = serde_json::to_vec(&intent).expect("plain data");
    let (context, chain, signature) = ("test".to_owned(), String::new(), Vec::new());
    (SignedIntent(SignedStatement { body, context, chain, signature }), intent)
}

async fn want(registry: &EmbeddedRegistry, revision: u64, channel: Option<&str>) -> IntentPut {
    let (signed, intent) = intent(revision, channel);
    write_intent(registry, &signed, &intent, None).await.expect("write")
}

async fn wanted(registry: &EmbeddedRegistry, prefix: &str) -> Vec<u64> {
    let all = intents(registry, prefix).await.expect("read");
    all.into_iter().map(|(_, signed)| signed.unverified().expect("whole").revision.0).collect()
}

#[tokio::test]
async fn a_policy_is_changed_only_by_who_has_seen_the_last_one() {
    let registry = in_memory();
    let write = async |revision, channel, expected| {
        let (signed, intent) = intent(revision, Some(channel));
        write_intent(&registry, &signed, &intent, Some(Revision(expected))).await.expect("write")
    };
    assert_eq!(write(3, "stable", 0).await, IntentPut::Written);
    assert_eq!(write(4, "beta", 0).await, IntentPut::Changed);
    assert_eq!(
        intents(&registry, keys::POLICIES).await.expect("read"),
        [(app(), intent(3, Some("stable")).0)]
    );
    assert_eq!(write(4, "beta", 3).await, IntentPut::Written);
    assert_eq!(wanted(&registry, keys::POLICIES).await, [4]);
}

#[tokio::test]
async fn an_earlier_policy_replaces_no_later_one() {
    let registry = in_memory();
    assert_eq!(want(&registry, 7, Some("stable")).await, IntentPut::Written);
    for earlier in [6, 7] {
        assert_eq!(want(&registry, earlier, Some("old")).await, IntentPut::Changed);
        assert_eq!(want(&registry, earlier, None).await, IntentPut::Changed);
    }
    assert_eq!(want(&registry, 8, None).await, IntentPut::Written);
    assert_eq!(want(&registry, 8, Some("old")).await, IntentPut::Changed);
    assert_eq!(wanted(&registry, keys::REMOVED).await, [8]);
}

#[tokio::test]
async fn verdicts_are_read_back_with_their_release_and_group() {
    let registry = in_memory();
    let verdict = |of: &str, what| GroupVerdict {
        app: app(),
        version: version("1.2.0+build-7"),
        platform: platform(),
        group: group(of),
        record: VerdictRecord { schema: SCHEMA, bad: what, stamp: stamp(1, 1, 1) },
    };
    let expected = vec![
        verdict("amd.zone-a", Some(Reason::ServersLost { servers: Vec::new() })),
        verdict("amd.zone-b", None),
    ];
    for one in &expected {
        let put = write_verdict(&registry, one).await.expect("write");
        assert!(matches!(put, FencedPut::Written));
    }
    assert_eq!(read_fleet(&registry).await.expect("read").verdicts, expected);
    assert!(remove_group(&registry, &group("amd.zone-a")).await.expect("write"));
    let left = read_fleet(&registry).await.expect("read");
    assert_eq!(left.verdicts, expected[1..], "a removed group stops nobody");
    assert!(!remove_group(&registry, &group("amd.zone-a")).await.expect("write"));
}

#[tokio::test]
async fn only_the_verdicts_about_the_last_versions_are_kept() {
    let registry = in_memory();
    for n in 0..VERDICT_VERSIONS_MAX + 3 {
        for of in ["amd.zone-a", "amd.zone-b"] {
            let verdict = GroupVerdict {
                app: app(),
                version: version(&format!("1.{n}.0")),
                platform: platform(),
                group: group(of),
                record: VerdictRecord { schema: SCHEMA, bad: None, stamp: stamp(1, 1, 1) },
            };
            let _ = write_verdict(&registry, &verdict).await.expect("write");
        }
    }
    assert_eq!(forget_old_verdicts(&registry).await.expect("write"), 6);
    assert_eq!(forget_old_verdicts(&registry).await.expect("write"), 0);
    let left = read_fleet(&registry).await.expect("read").verdicts;
    assert_eq!(left.len(), 2 * VERDICT_VERSIONS_MAX);
    assert!(left.iter().all(|verdict| verdict.version != version("1.2.0")));
}

#[tokio::test]
async fn a_removed_app_has_no_policy_until_it_is_added_again() {
    let registry = in_memory();
    assert_eq!(want(&registry, 1, None).await, IntentPut::NoApp);
    assert_eq!(want(&registry, 1, Some("stable")).await, IntentPut::Written);
    assert_eq!(want(&registry, 2, None).await, IntentPut::Written);
    assert_eq!(wanted(&registry, keys::POLICIES).await, [0; 0]);
    // Its signer's authority may have been replaced; and a group that has not heeded it may know a
    // later policy: said again, it is newer.
    assert_eq!(want(&registry, 2, None).await, IntentPut::Changed);
    assert_eq!(want(&registry, 4, None).await, IntentPut::Written);
    assert_eq!(wanted(&registry, keys::REMOVED).await, [4]);
    assert_eq!(want(&registry, 5, Some("stable")).await, IntentPut::Written);
    assert_eq!(wanted(&registry, keys::REMOVED).await, [0; 0]);
}

#[tokio::test]
async fn a_record_of_an_app_that_its_group_does_not_have_goes_unless_it_may_be_newer() {
    let registry = in_memory();
    let at = |index| record(stamp(1, 1, index), PhaseName::Removing);
    let _ = write_group_record(&registry, &at(5)).await.expect("write");
    let here = group("intel.zone-a");
    let left = async || read_group_record(&registry, &here, &app()).await.expect("read").is_some();
    forget_ghosts(&registry, &here, stamp(1, 2, 4), |_| false).await.expect("write");
    assert!(left().await, "the group's state is older than the record");
    forget_ghosts(&registry, &here, stamp(1, 2, 5), |_| true).await.expect("write");
    assert!(left().await, "the group has the app");
    assert_eq!(want(&registry, 1, Some("stable")).await, IntentPut::Written);
    forget_ghosts(&registry, &here, stamp(2, 1, 1), |_| false).await.expect("write");
    assert!(left().await, "the group is about to have it");
    assert_eq!(want(&registry, 2, None).await, IntentPut::Written);
    forget_ghosts(&registry, &here, stamp(2, 1, 1), |_| false).await.expect("write");
    assert!(!left().await);
}

#[tokio::test]
async fn the_fleet_is_shown_whole_even_with_a_broken_record() {
    let registry = in_memory();
    let info = GroupInfo {
        schema: SCHEMA,
        group: group("intel.zone-a"),
        labels: BTreeMap::from([("zone".into(), "zone-a".into())]),
        platform: platform(),
    };
    write_group_info(&registry, &info).await.expect("write");
    let joined = ServerRecord {
        schema: SCHEMA,
        server: server("a"),
        address: "127.0.0.1:7417".into(),
        labels: BTreeMap::new(),
        rack: None,
        group: info.group.clone(),
    };
    let then = vec![Op::put(keys::server(&joined.server), encode(&joined))];
    registry.txn(Txn { then, ..Txn::default() }).await.expect("write");
    let put = write_group_record(&registry, &record(stamp(1, 1, 1), PhaseName::Running)).await;
    assert!(matches!(put.expect("write"), FencedPut::Written));
    let broken = keys::members(&info.group);
    let txn = Txn { then: vec![Op::put(&broken, "no JSON")], ..Txn::default() };
    registry.txn(txn).await.expect("put");
    let fleet = read_fleet(&registry).await.expect("read");
    assert_eq!(fleet.servers, vec![joined]);
    assert_eq!(fleet.groups[&info.group].info, Some(info.clone()));
    assert_eq!(fleet.groups[&info.group].apps.len(), 1);
    assert_eq!(fleet.unreadable.len(), 1);
    assert!(fleet.unreadable[0].contains(&broken));
    assert_eq!(group_infos(&registry).await.expect("read"), vec![info]);
    // What the command line gets is what the hub has read.
    let text = serde_json::to_string(&fleet).expect("serializes");
    assert_eq!(serde_json::from_str::<crate::fleet::Fleet>(&text).expect("parses"), fleet);
}

#[test]
fn every_key_of_the_layout_is_read_back() {
    let (name, release) = (group("intel.zone-a"), version("1.0.0"));
    let places = [
        (keys::server(&server("a")), Place::Server { server: server("a") }),
        (keys::group_info(&name), Place::GroupInfo { group: name.clone() }),
        (keys::bootstrap(&name), Place::Bootstrap { group: name.clone() }),
        (keys::members(&name), Place::Members { group: name.clone() }),
        (keys::group_record(&name, &app()), Place::GroupRecord { group: name.clone(), app: app() }),
        (
            keys::verdict(&app(), &release, &platform(), &name),
            Place::Verdict { app: app(), version: release, platform: platform(), group: name },
        ),
        (keys::policy(&app()), Place::Policy { app: app() }),
        (
            keys::kill(&KillScope::Group("web".parse().expect("a group"))),
            Place::Kill { scope: "group/web".into() },
        ),
    ];
    for (key, place) in places {
        assert_eq!(keys::parse(&key), Some(place), "{key}");
    }
    for strange in ["", "/cohort/v2/servers/a", "/cohort/v1/servers/A", "/cohort/v1/groups/g/x"] {
        assert_eq!(keys::parse(strange), None, "{strange}");
    }
}

#[tokio::test]
async fn a_server_that_moved_replaces_its_address_only() {
    let registry = in_memory();
    let name = server("web-1");
    let record = ServerRecord {
        schema: SCHEMA,
        server: name.clone(),
        address: "10.0.0.1:7417".to_owned(),
        labels: BTreeMap::from([("zone".to_owned(), "zone-a".to_owned())]),
        rack: Some("r1".to_owned()),
        group: group("intel.zone-a"),
    };
    let then = vec![Op::put(keys::server(&name), encode(&record))];
    registry.txn(Txn { then, ..Txn::default() }).await.expect("written");
    let tell = async |own: &ServerRecord| tell_server(&registry, own).await.expect("told");
    let stored = async || read_server(&registry, &name).await.expect("read").expect("a record");
    assert_eq!(tell(&record).await, Told::Known);
    // What it says of its labels after it joined does not count.
    let address = "10.0.0.9:7417".to_owned();
    let moved = ServerRecord { address, labels: BTreeMap::new(), ..record.clone() };
    assert_eq!(tell(&moved).await, Told::Moved);
    assert_eq!(stored().await, ServerRecord { labels: record.labels, ..moved.clone() });
    // It joined another group after the backup that the registry was restored from.
    let joined = ServerRecord { group: group("intel.zone-b"), ..moved };
    assert_eq!(tell(&joined).await, Told::Restored);
    assert_eq!(stored().await, joined);
}
