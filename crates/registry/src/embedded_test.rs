use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use cohort_core::ids::{AppId, GroupId, Revision, ServerId};
use cohort_identity::SignedStatement;
use cohort_wire::intent::{AppIntent, SignedIntent, Wanted};

use crate::api::{
    Compare, Event, Op, RangeRequest, Registry, RegistryError, Selector, Txn, WatchRequest,
};
use crate::disk::OpenError;
use crate::embedded::{EmbeddedRegistry, RESTORE_LEAP};
use crate::keys;
use crate::records::{IntentRecord, SCHEMA, encode};
use crate::state::HISTORY_EVENTS_MAX;
use crate::typed::{bootstrap_group, get, list, read_bootstrap, write_intent};

const NOW_S: u64 = 1_800_000_000;

fn open(folder: &Path) -> EmbeddedRegistry {
    EmbeddedRegistry::open(&folder.join("registry.redb"), "store-1").expect("opens")
}

async fn put(registry: &dyn Registry, key: &str, value: &str) -> u64 {
    let txn = Txn { then: vec![Op::put(key, value)], ..Txn::default() };
    registry.txn(txn).await.expect("put").revision
}

fn watch(prefix: &str, from_revision: u64, wait_ms: u64) -> WatchRequest {
    WatchRequest { select: Selector::Prefix(prefix.into()), from_revision, wait_ms }
}

#[tokio::test]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let folder = tempfile::tempdir().expect("temp dir");
    let (before, events_before) = {
        let registry = open(folder.path());
        for n in 0..20 {
            put(&registry, &format!("/k/{}", n % 7), &format!("value {n}")).await;
        }
        registry
            .txn(Txn { then: vec![Op::Delete { key: "/k/3".into() }], ..Txn::default() })
            .await
            .expect("delete");
        let events = registry.watch(watch("/", 2, 0)).await.expect("watch");
        (list(&registry, "").await.expect("list"), events)
    };
    let registry = open(folder.path());
    assert_eq!(list(&registry, "").await.expect("list"), before);
    assert_eq!(registry.watch(watch("/", 2, 0)).await.expect("watch"), events_before);
    assert_eq!(put(&registry, "/k/3", "again").await, before.1 + 1);
    assert_eq!(registry.store(), "store-1");
    let file = std::fs::metadata(folder.path().join("registry.redb")).expect("there");
    assert_eq!(file.permissions().mode() & 0o777, 0o600);
    assert!(!registry.restored());
}

#[tokio::test]
async fn a_watcher_goes_on_across_a_restart_and_is_told_of_compaction() {
    let folder = tempfile::tempdir().expect("temp dir");
    let seen = {
        let registry = open(folder.path());
        put(&registry, "/a", "1").await
    };
    let registry = open(folder.path());
    put(&registry, "/a", "2").await;
    let told = registry.watch(watch("/a", seen + 1, 0)).await.expect("known");
    assert_eq!(told.events.len(), 1);
    let per_txn = 100;
    for round in 0..=(HISTORY_EVENTS_MAX / per_txn) {
        let then = (0..per_txn).map(|n| Op::put(format!("/b/{n}"), round.to_string())).collect();
        registry.txn(Txn { then, ..Txn::default() }).await.expect("txn");
    }
    drop(registry);
    let registry = open(folder.path());
    let error = registry.watch(watch("/a", seen + 1, 0)).await.expect_err("forgotten");
    assert!(matches!(error, RegistryError::Compacted { .. }), "{error}");
    assert_eq!(get(&registry, "/a").await.expect("get").expect("there").value, "2");
}

#[tokio::test]
async fn a_watcher_waits_for_its_keys_only() {
    let folder = tempfile::tempdir().expect("temp dir");
    let registry = open(folder.path());
    let watcher = registry.clone();
    let waiting = tokio::spawn(async move { watcher.watch(watch("/mine/", 0, 30_000)).await });
    // Writes until the watcher, whenever it starts, has seen one of its own.
    let told = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            put(&registry, "/other", "x").await;
            put(&registry, "/mine/1", "x").await;
            if waiting.is_finished() {
                return waiting.await;
            }
        }
    });
    let told = told.await.expect("in time").expect("no panic").expect("told");
    assert!(told.events.iter().all(|event| event.key() == "/mine/1"));
    let empty = registry.watch(watch("/never/", 0, 1)).await.expect("over");
    assert_eq!((empty.events.len(), empty.revision), (0, registry.revision()));
}

#[tokio::test]
async fn of_many_who_bootstrap_at_once_all_agree() {
    let folder = tempfile::tempdir().expect("temp dir");
    let registry = open(folder.path());
    let group = GroupId::new("intel.zone-a").expect("valid");
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..10 {
        let (registry, group) = (registry.clone(), group.clone());
        tasks.spawn(async move {
            let server = ServerId::new(format!("server-{n}")).expect("valid");
            bootstrap_group(&registry, &group, &server).await.expect("bootstraps")
        });
    }
    let answers = tasks.join_all().await;
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    let read = read_bootstrap(&registry, &group).await.expect("read");
    assert_eq!(read.as_ref(), Some(&answers[0]));
}

#[tokio::test]
async fn an_asker_who_goes_away_leaves_file_and_memory_alike() {
    let folder = tempfile::tempdir().expect("temp dir");
    let registry = open(folder.path());
    for n in 0..50u64 {
        let txn = Txn { then: vec![Op::put(format!("/{n}"), "x")], ..Txn::default() };
        let pending = registry.txn(txn);
        // Polled once and then dropped.
        let _ = tokio::time::timeout(Duration::ZERO, pending).await;
    }
    put(&registry, "/last", "x").await;
    let before = list(&registry, "").await.expect("list");
    drop(registry);
    let reopened = tokio::time::timeout(Duration::from_secs(20), async {
        loop {
            match EmbeddedRegistry::open(&folder.path().join("registry.redb"), "") {
                Ok(registry) => return registry,
                Err(_) => tokio::task::yield_now().await,
            }
        }
    });
    let registry = reopened.await.expect("the file is free once the last task has ended");
    assert!(registry.revision() >= before.1);
    let now = list(&registry, "").await.expect("list");
    assert!(before.0.iter().all(|pair| now.0.contains(pair)));
}

#[tokio::test]
async fn a_copy_bootstraps_nothing_until_it_is_confirmed() {
    let folder = tempfile::tempdir().expect("temp dir");
    let file = folder.path().join("registry.redb");
    let group = GroupId::new("web").expect("valid");
    let server = ServerId::new("a").expect("valid");
    let app = AppId::new("web").expect("valid");
    let removal = |revision| AppIntent {
        app: app.clone(),
        revision: Revision(revision),
        wanted: Wanted::Removal,
        at: 1,
    };
    let signed = |revision| {
        let body = serde_json::to_vec(&removal(revision)).expect("plain data");
        let (context, chain, signature) = ("test".to_owned(), String::new(), Vec::new());
        SignedIntent(SignedStatement { body, context, chain, signature })
    };
    let first = {
        let registry = open(folder.path());
        let policy = IntentRecord { schema: SCHEMA, signed: signed(1) };
        put(&registry, &keys::policy(&app), &encode(&policy)).await;
        put(&registry, "/x", "1").await
    };
    let copy = folder.path().join("copy.redb");
    std::fs::copy(&file, &copy).expect("copy");
    std::fs::rename(&copy, &file).expect("put back");

    let registry = open(folder.path());
    assert!(registry.restored());
    put(&registry, "/x", "2").await;
    let error = bootstrap_group(&registry, &group, &server).await.expect_err("refused");
    assert!(matches!(error, RegistryError::RestoredUnconfirmed), "{error}");
    // A group would ignore the number of this removal, and keep the app for ever.
    let removed = write_intent(&registry, &signed(2), &removal(2), None).await;
    let error = removed.expect_err("refused");
    assert!(matches!(error, RegistryError::RestoredUnconfirmed), "{error}");
    drop(registry);

    let registry = open(folder.path());
    assert!(registry.restored(), "it is not forgotten by a restart");
    registry.confirm_restored(NOW_S).await.expect("confirmed");
    let bootstrap = bootstrap_group(&registry, &group, &server).await.expect("bootstraps");
    assert!(bootstrap.incarnation.0 > RESTORE_LEAP, "beyond all that was given out");
    let error = registry.watch(watch("/", first + 1, 0)).await.expect_err("another life");
    assert!(matches!(error, RegistryError::Compacted { .. }), "{error}");
    drop(registry);

    let registry = open(folder.path());
    assert!(!registry.restored());
    assert_eq!(read_bootstrap(&registry, &group).await.expect("read"), Some(bootstrap));
}

#[tokio::test]
async fn an_asker_who_knows_more_makes_it_suspicious() {
    let folder = tempfile::tempdir().expect("temp dir");
    let registry = open(folder.path());
    let error = registry.watch(watch("/", 500, 0)).await.expect_err("future");
    assert!(matches!(error, RegistryError::WentBack { .. }), "{error}");
    assert!(registry.suspect_restore(499).await.expect("noted"));
    drop(registry);
    let registry = open(folder.path());
    assert!(registry.restored());
    assert!(!registry.suspect_restore(3).await.expect("noted"), "no news");
}

#[tokio::test]
async fn a_registry_lost_twice_issues_no_number_twice() {
    let lost = || {
        let folder = tempfile::tempdir().expect("temp dir");
        let path = folder.path().join("registry.redb");
        (EmbeddedRegistry::open_again(&path, "store").expect("opens"), folder)
    };
    let (first, _folder) = lost();
    first.confirm_restored(NOW_S).await.expect("confirmed");
    // A minute of writes, as many as a disk can sync.
    let issued = first.revision() + 60 * 999;
    let (second, _folder) = lost();
    assert!(second.may_have_issued(issued, NOW_S + 60));
    assert!(!second.may_have_issued(u64::MAX, NOW_S + 60), "a confirmation would not skip it");
    second.confirm_restored(NOW_S + 60).await.expect("confirmed");
    assert!(!second.may_have_issued(second.revision() + 1, NOW_S + 60), "it is not restored");
    assert!(second.revision() > issued, "{} after {issued}", second.revision());
    // Where the clock is of no use, what clients have seen is, also across a restart.
    let (third, folder) = lost();
    third.suspect_restore(issued).await.expect("noted");
    drop(third);
    let third = open(folder.path());
    third.confirm_restored(0).await.expect("confirmed");
    assert!(third.revision() > issued + RESTORE_LEAP - 1, "{}", third.revision());
}

#[tokio::test]
async fn a_damaged_file_is_refused_by_name() {
    let folder = tempfile::tempdir().expect("temp dir");
    let file = folder.path().join("registry.redb");
    std::fs::write(&file, b"this is no database, by any means").expect("write");
    let refused = || EmbeddedRegistry::open(&file, "").err().expect("refused");
    let is_damaged =
        |error: &OpenError| matches!(error, OpenError::Damaged { path, .. } if *path == file);
    assert!(is_damaged(&refused()), "{:?}", refused());
    std::fs::remove_file(&file).expect("remove");
    drop(open(folder.path()));
    let bytes = std::fs::read(&file).expect("read");
    // Cut short, and with pages that are not what was written.
    std::fs::write(&file, &bytes[..bytes.len() / 2]).expect("write");
    assert!(is_damaged(&refused()), "{:?}", refused());
    let mut pages = bytes.clone();
    pages[4096..].fill(0xa5);
    std::fs::write(&file, pages).expect("write");
    assert!(is_damaged(&refused()), "{:?}", refused());
    std::fs::write(&file, bytes).expect("write");
    let _held = open(folder.path());
    assert!(matches!(refused(), OpenError::InUse { .. }), "{:?}", refused());
}

#[tokio::test]
async fn a_transaction_of_many_keys_is_one_revision() {
    let folder = tempfile::tempdir().expect("temp dir");
    let registry = open(folder.path());
    let txn = Txn {
        compare: vec![Compare::absent("/a")],
        then: vec![Op::put("/a", "1"), Op::put("/b", "1")],
        ..Txn::default()
    };
    assert!(registry.txn(txn.clone()).await.expect("txn").succeeded);
    assert!(!registry.txn(txn).await.expect("txn").succeeded);
    let told = registry.watch(watch("/", 2, 0)).await.expect("watch");
    assert!(told.events.iter().all(|event: &Event| event.revision() == 2));
    let select = Selector::Prefix("/".into());
    let all = registry.range(RangeRequest { select, after: None, limit: 0 }).await.expect("range");
    assert_eq!(all.items.len(), 2);
}
