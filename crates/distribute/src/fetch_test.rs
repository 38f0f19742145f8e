//! Fetches from mirrors on loopback that misbehave in every way we could think of.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;

use crate::fetch::{FetchError, fetch};
use crate::testing::{
    DEADLINE, Disk, Manners, Mirror, Sample, UNIT, context, fetch_once, patient, quick,
};
use crate::{
    Downloads, FetchStatus, FetchWait, Offence, Progress, SourceKind, SourceName, StoreError,
};

fn sample() -> Sample {
    Sample::new("fetch", 40 * UNIT + 777)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_artifact_comes_whole_and_every_byte_once() {
    for length in [1, UNIT - 1, UNIT, UNIT + 1, 40 * UNIT + 777] {
        let (disk, sample) = (Disk::new(), Sample::new("lengths", length));
        let mirror = Mirror::start(&[&sample], Manners::default()).await;
        let context = context(&disk, &[&mirror], patient());
        let (result, progress) = fetch_once(&context, sample.order()).await;
        result.unwrap();
        disk.assert_holds(&sample);
        assert_eq!(mirror.sent(), length as u64);
        let hashes = sample.hashes.to_bytes().len() as u64;
        assert_eq!(progress.bytes_from_mirrors, length as u64 + hashes);
        assert_eq!(context.counters.received(SourceKind::Mirror), length as u64 + hashes);
        assert_eq!((progress.bytes_held, progress.bytes_total), (length as u64, length as u64));
        assert_eq!(disk.reopened().held(), [sample.digest().clone()]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_dies_in_the_middle_and_the_next_goes_on_from_there() {
    let (disk, sample) = (Disk::new(), sample());
    let dying = Manners { dies_after: Some(15 * UNIT as u64), ..Manners::default() };
    let first = Mirror::start(&[&sample], dying).await;
    let second = Mirror::start(&[&sample], Manners::default()).await;
    let context = context(&disk, &[&first, &second], patient());
    let (result, progress) = fetch_once(&context, sample.order()).await;
    result.unwrap();
    disk.assert_holds(&sample);
    // Only bytes in transit are fetched twice: at most the last unit of two requests, and what the
    // sockets held of them.
    assert!(second.sent() <= sample.release.length - 12 * UNIT as u64, "{}", second.sent());
    assert_eq!(context.mirrors.ranked(), [1, 0], "the next fetch begins where this one went well");
    let name = SourceName::mirror(&format!("{}/", first.url));
    let report = progress.sources.iter().find(|report| report.source == name);
    assert!(report.is_some_and(|report| report.last_error.is_some()), "{progress:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bit_flipped_in_any_unit_is_refused_and_fetched_elsewhere() {
    let sample = Sample::new("flip", 5 * UNIT + 99);
    for unit in 0..6 {
        let disk = Disk::new();
        let bad = Manners { flips: parking_lot::Mutex::new([unit].into()), ..Manners::default() };
        let bad = Mirror::start(&[&sample], bad).await;
        let good = Mirror::start(&[&sample], Manners::default()).await;
        let context = context(&disk, &[&bad, &good], quick());
        let (result, progress) = fetch_once(&context, sample.order()).await;
        result.unwrap();
        disk.assert_holds(&sample);
        assert_eq!(context.counters.refused_units(), 1);
        let offender = progress.sources.iter().find(|source| source.refused_units > 0).unwrap();
        assert_eq!(offender.source, SourceName::mirror(&format!("{}/", bad.url)));
        assert_eq!(offender.offences, [(Offence::WrongBytes, 1)].into());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn with_wrong_bytes_only_the_fetch_gives_up_and_names_the_offender() {
    let (disk, sample) = (Disk::new(), sample());
    let bad = Manners { flips: parking_lot::Mutex::new([7].into()), ..Manners::default() };
    let bad = Mirror::start(&[&sample], bad).await;
    let limits = crate::Limits { give_up_ms: 1_500, ..quick() };
    let context = context(&disk, &[&bad], limits);
    let (result, _) = fetch_once(&context, sample.order()).await;
    let error = result.unwrap_err();
    let FetchError::GaveUp { held: 40, count: 41, complaints, .. } = &error else {
        panic!("{error}")
    };
    assert!(complaints.contains(&bad.url), "{complaints}");
    assert!(disk.store.held().is_empty() && disk.store.path(sample.digest()).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_crash_only_what_is_missing_is_fetched() {
    let (mut disk, sample) = (Disk::new(), sample());
    let gate = Arc::new(Semaphore::new(0));
    let slow = Manners { gate: Some((20 * UNIT as u64, Arc::clone(&gate))), ..Manners::default() };
    let mirror = Mirror::start(&[&sample], slow).await;
    let half = context(&disk, &[&mirror], patient());
    let (_orders, receiver) = watch::channel(sample.order());
    let (progress, mut shown) = watch::channel(Progress::default());
    let cancel = CancellationToken::new();
    {
        let mut fetching = Box::pin(fetch(&half, receiver, &progress, &cancel));
        let enough = shown.wait_for(|progress| progress.bytes_held >= 20 * UNIT as u64);
        tokio::select! {
            result = &mut fetching => panic!("cannot end before the gate opens: {result:?}"),
            enough = tokio::time::timeout(DEADLINE, enough) => drop(enough.unwrap().unwrap()),
        }
        // Dropped here, as in a crash.
    }
    // What a power cut may do to an unsynced file: one unit of zeros, another one torn.
    let part = disk.file(&format!("{}.part", sample.digest()));
    let mut bytes = std::fs::read(&part).unwrap();
    bytes[3 * UNIT..4 * UNIT].fill(0);
    bytes[9 * UNIT + 100..9 * UNIT + 200].fill(9);
    std::fs::write(&part, bytes).unwrap();
    gate.add_permits(1_000);
    disk.store = disk.reopened();
    assert!(disk.store.held().is_empty());
    let mirror = Mirror::start(&[&sample], Manners::default()).await;
    let (result, progress) =
        fetch_once(&context(&disk, &[&mirror], patient()), sample.order()).await;
    result.unwrap();
    disk.assert_holds(&sample);
    let resumed = progress.bytes_resumed;
    assert_eq!(resumed % UNIT as u64, 0);
    assert!(resumed >= 18 * UNIT as u64, "{resumed}");
    assert_eq!(mirror.sent(), sample.release.length - resumed);
    assert_eq!(progress.bytes_from_mirrors, mirror.sent(), "the unit hashes were there too");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_before_the_first_byte() {
    let sample = sample();
    let disk = Disk::with(|| 1_000_000);
    let mirror = Mirror::start(&[&sample], Manners::default()).await;
    let (result, _) = fetch_once(&context(&disk, &[&mirror], quick()), sample.order()).await;
    let error = result.unwrap_err();
    let FetchError::Store(StoreError::NoSpace { needed, free, reserve, path }) = &error else {
        panic!("{error:?}");
    };
    let length = sample.release.length + 41 * 32;
    assert_eq!((*needed, *free, *reserve), (length + (1 << 20), 1_000_000, 1 << 20));
    assert_eq!(path, &disk.file(""));
    assert_eq!(mirror.requests(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_told_to_people_and_the_fetch_goes_on_when_there_is_room() {
    let sample = sample();
    let space = Arc::new(AtomicU64::new(0));
    let free = Arc::clone(&space);
    let disk = Disk::with(move || free.load(Ordering::Relaxed));
    let mirror = Mirror::start(&[&sample], Manners::default()).await;
    let downloads = Downloads::new(context(&disk, &[&mirror], quick()));
    downloads.set_orders(&[sample.order()]);
    let mut statuses = downloads.statuses();
    let status = {
        let failed = |all: &BTreeMap<_, _>| {
            matches!(all.get(sample.digest()), Some(FetchStatus::Failed { .. }))
        };
        let waits = statuses.wait_for(failed);
        let all = tokio::time::timeout(DEADLINE, waits).await.unwrap().unwrap();
        all[sample.digest()].clone()
    };
    let FetchStatus::Failed { reason, tries } = status else { panic!("{status:?}") };
    let path = disk.file("");
    assert!(reason.contains(path.to_str().unwrap().trim_end_matches('/')), "{reason}");
    assert_eq!(tries, 1);
    assert_eq!(std::fs::read_dir(&path).unwrap().count(), 0, "nothing was written");
    assert_eq!(mirror.requests(), 0, "nothing was asked for");
    space.store(u64::MAX, Ordering::Relaxed);
    let held = statuses.wait_for(|all| all.get(sample.digest()) == Some(&FetchStatus::Held));
    tokio::time::timeout(DEADLINE, held).await.unwrap().unwrap();
    disk.assert_holds(&sample);
}

#[tokio::test(flavor = "multi_thread")]
async fn sources_that_hang_trickle_lie_or_never_end_are_left_for_the_next() {
    let bad: Vec<(&str, Manners)> = vec![
        ("hangs", Manners { hangs: AtomicBool::new(true), ..Manners::default() }),
        ("silent", Manners { silent: true, ..Manners::default() }),
        ("trickles", Manners { trickles: true, ..Manners::default() }),
        ("wrong total", Manners { wrong_total: true, ..Manners::default() }),
        ("endless", Manners { endless: true, ..Manners::default() }),
        ("short", Manners { short: true, ..Manners::default() }),
        ("wrong hashes", Manners { wrong_hashes: true, ..Manners::default() }),
        ("dead", Manners { dies_after: Some(0), ..Manners::default() }),
    ];
    for (name, manners) in bad {
        let (disk, sample) = (Disk::new(), Sample::new(name, 20 * UNIT + 1));
        let bad = Mirror::start(&[&sample], manners).await;
        let good = Mirror::start(&[&sample], Manners::default()).await;
        let context = context(&disk, &[&bad, &good], quick());
        let (result, progress) = fetch_once(&context, sample.order()).await;
        assert!(result.is_ok(), "{name}: {result:?}");
        disk.assert_holds(&sample);
        let report = &progress.sources[0];
        assert!(report.last_error.is_some(), "{name}: {report:?}");
        assert!(bad.sent() < 3 * sample.release.length, "{name}: {}", bad.sent());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_source_is_asked_for_less_at_once_and_loses_nothing() {
    let (disk, sample) = (Disk::new(), Sample::new("slow", 12 * UNIT));
    let slow = Manners { paced: true, ..Manners::default() };
    let mirror = Mirror::start(&[&sample], slow).await;
    let limits = crate::Limits { request_ms_max: 100, unit_ms_max: 10_000, ..quick() };
    let context = context(&disk, &[&mirror], limits);
    let (result, progress) = fetch_once(&context, sample.order()).await;
    result.unwrap();
    disk.assert_holds(&sample);
    let report = &progress.sources[0];
    assert!(report.offences[&Offence::Slow] > 0 && report.failures == 0, "{report:?}");
    assert!(mirror.requests() >= 4, "{}", mirror.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_without_the_artifact_is_passed_over() {
    let (disk, sample) = (Disk::new(), sample());
    let empty = Mirror::start(&[], Manners::default()).await;
    let good = Mirror::start(&[&sample], Manners::default()).await;
    let context = context(&disk, &[&empty, &good], quick());
    fetch_once(&context, sample.order()).await.0.unwrap();
    disk.assert_holds(&sample);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mirror_that_ignores_ranges_is_asked_for_everything_once() {
    let (disk, sample) = (Disk::new(), sample());
    let plain = Manners { ignores_ranges: true, ..Manners::default() };
    let mirror = Mirror::start(&[&sample], plain).await;
    fetch_once(&context(&disk, &[&mirror], patient()), sample.order()).await.0.unwrap();
    disk.assert_holds(&sample);
    // The hashes, two ranges to which everything was sent (and dropped), everything.
    assert!(mirror.requests() <= 4, "{}", mirror.requests());
}

#[tokio::test(flavor = "multi_thread")]
async fn retry_after_is_obeyed() {
    let (disk, sample) = (Disk::new(), Sample::new("busy", 3 * UNIT));
    let busy = Manners { busy: AtomicU32::new(1), ..Manners::default() };
    let mirror = Mirror::start(&[&sample], busy).await;
    let begun = Instant::now();
    fetch_once(&context(&disk, &[&mirror], patient()), sample.order()).await.0.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1), "{:?}", begun.elapsed());
    assert_eq!(mirror.requests(), 3, "busy, hashes, units");
}

#[tokio::test(flavor = "multi_thread")]
async fn without_leave_no_mirror_is_asked_and_the_wait_says_why() {
    let (disk, sample) = (Disk::new(), sample());
    let mirror = Mirror::start(&[&sample], Manners::default()).await;
    let context = context(&disk, &[&mirror], crate::Limits { give_up_ms: 50, ..quick() });
    let order = cohort_core::orders::FetchOrder { from_mirror: false, ..sample.order() };
    let (orders, receiver) = watch::channel(order);
    let (progress, mut shown) = watch::channel(Progress::default());
    let cancel = CancellationToken::new();
    let mut fetching = Box::pin(fetch(&context, receiver, &progress, &cancel));
    let waits = shown.wait_for(|progress| progress.waiting_on == Some(FetchWait::Holder));
    tokio::select! {
        result = &mut fetching => panic!("nobody can be asked: {result:?}"),
        waits = tokio::time::timeout(DEADLINE, waits) => drop(waits.unwrap().unwrap()),
    }
    assert_eq!(mirror.requests(), 0);
    // The leader gives permission, for another version with identical bytes: the fetch continues.
    let mut leave = sample.order();
    leave.release.version = "1.0.1".parse().unwrap();
    orders.send_replace(leave);
    tokio::time::timeout(DEADLINE, fetching).await.unwrap().unwrap();
    disk.assert_holds(&sample);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_order_or_a_cancelled_token_ends_the_fetch() {
    let (disk, sample) = (Disk::new(), sample());
    let silent = Manners { silent: true, ..Manners::default() };
    let mirror = Mirror::start(&[&sample], silent).await;
    let context =
        context(&disk, &[&mirror], crate::Limits { first_byte_ms_max: 20_000, ..patient() });
    for by_token in [true, false] {
        let (orders, receiver) = watch::channel(sample.order());
        let (progress, _) = watch::channel(Progress::default());
        let cancel = CancellationToken::new();
        let fetching = fetch(&context, receiver, &progress, &cancel);
        if by_token {
            cancel.cancel();
        } else {
            drop(orders);
        }
        let result = tokio::time::timeout(DEADLINE, Box::pin(fetching)).await.unwrap();
        assert!(matches!(result, Err(FetchError::Cancelled { .. })), "{result:?}");
        drop(disk.store.claim(sample.digest(), sample.release.length));
    }
}
