//! Origins that lie, die and fall silent.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32};
use std::time::{Duration, Instant};

use crate::support::{
    DEADLINE, Manners, Origin, Running, Sample, UNIT, cache, cache_with, long_pauses, quick,
};
use parking_lot::Mutex;

fn flipping(units: &[u32]) -> Manners {
    Manners { flips: Mutex::new(units.iter().copied().collect()), ..Manners::default() }
}

/// Asks until the origins are trusted again.
async fn gives_in_time(cache: &Running, sample: &Sample) {
    let begun = Instant::now();
    while cache.get(&sample.path()).await != (200, Some(sample.bytes.clone())) {
        assert!(begun.elapsed() < DEADLINE, "it never came");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn wrong_bytes_are_taken_from_another_origin() {
    let sample = Sample::new("liar", 30 * UNIT);
    let liar = Origin::with(&[&sample], flipping(&[3, 17]));
    let honest = Origin::start(&[&sample]);
    let (cache, _dir) = cache(&[&liar, &honest]).await;
    cache.assert_gives(&sample).await;
    assert!(cache.metric("wrong_bytes_total").await >= 1);
    // Correct units from the first one are not fetched twice.
    assert_eq!(honest.units_asked(&sample)[..3], [0, 0, 0]);
}

#[tokio::test]
async fn wrong_bytes_alone_are_neither_given_nor_kept() {
    let sample = Sample::new("alone", 30 * UNIT);
    let other = Sample::new("other", 2 * UNIT);
    let liar = Origin::with(&[&sample, &other], flipping(&[20]));
    let (cache, _dir) = cache(&[&liar]).await;
    let mut answer = cache.send(&sample.path(), &[]).await;
    assert_eq!((answer.status().as_u16(), answer.content_length()), (200, Some(30 * UNIT as u64)));
    let mut body = Vec::new();
    let cut = loop {
        match answer.chunk().await {
            Ok(Some(piece)) => body.extend_from_slice(&piece),
            Ok(None) => break false,
            Err(_) => break true,
        }
    };
    assert!(cut, "the connection is cut");
    assert_eq!(body, sample.bytes[..20 * UNIT], "everything before it was given");
    // Before the first byte, another response is still possible.
    let range = format!("bytes={}-", 20 * UNIT + 1);
    let answer = cache.send(&sample.path(), &[("range", &range)]).await;
    assert_eq!(answer.status(), 502);
    // One damaged file does not make the others unavailable.
    gives_in_time(&cache, &other).await;
    liar.manners().flips.lock().clear();
    gives_in_time(&cache, &sample).await;
}

#[tokio::test]
async fn wrong_hashes_and_wrong_lengths_are_refused() {
    let sample = Sample::new("ends", 5 * UNIT + 100);
    let one = Sample::new("one", 100);
    for manners in [
        Manners { wrong_hashes: AtomicBool::new(true), ..Manners::default() },
        Manners { shorter: 1, ..Manners::default() },
        flipping(&[5, 0]),
    ] {
        let liar = Origin::with(&[&sample, &one], manners);
        let (cache, dir) = cache(&[&liar]).await;
        assert_eq!(cache.get(&sample.path()).await.0, 502);
        // 503 while the first one is paused.
        assert!([502, 503].contains(&cache.get(&one.path()).await.0));
        assert_eq!(std::fs::read_dir(dir.path().join("cache/blobs")).unwrap().count(), 0);
        let honest = Origin::start(&[&sample, &one]);
        let (cache, _dir) = crate::support::cache(&[&liar, &honest]).await;
        cache.assert_gives(&sample).await;
        cache.assert_gives(&one).await;
    }
}

#[tokio::test]
async fn an_origin_without_ranges_is_no_help() {
    let sample = Sample::new("ranges", 40 * UNIT);
    let manners = Manners { ignores_ranges: true, ..Manners::default() };
    let without = Origin::with(&[&sample], manners);
    let with = Origin::start(&[&sample]);
    let (cache, _dir) = cache(&[&without, &with]).await;
    cache.assert_gives(&sample).await;
}

#[tokio::test]
async fn another_origin_goes_on_where_one_died() {
    let sample = Sample::new("dies", 40 * UNIT);
    let manners = Manners { dies_after: Mutex::new(Some(10 * UNIT as u64)), ..Manners::default() };
    let dying = Origin::with(&[&sample], manners);
    let other = Origin::start(&[&sample]);
    let (cache, _dir) = cache(&[&dying, &other]).await;
    cache.assert_gives(&sample).await;
    assert_eq!(cache.metric("misses_total").await, 40, "each unit came once");
    assert!(other.units_asked(&sample)[..5].iter().all(|count| *count == 0));
}

#[tokio::test]
async fn an_only_origin_that_died_is_asked_again() {
    let sample = Sample::new("again", 20 * UNIT);
    let manners = Manners { dies_after: Mutex::new(Some(4 * UNIT as u64)), ..Manners::default() };
    let origin = Origin::with(&[&sample], manners);
    let (cache, _dir) = cache(&[&origin]).await;
    let (status, body) = cache.get(&sample.path()).await;
    assert!(status != 200 || body.is_none(), "it cannot be whole");
    let kept = cache.metric("misses_total").await;
    assert!(kept >= 1);
    *origin.manners().dies_after.lock() = None;
    gives_in_time(&cache, &sample).await;
    assert_eq!(cache.metric("misses_total").await, 20, "what was kept is not fetched again");
}

#[tokio::test]
async fn silence_is_left_for_another_origin() {
    let samples: Vec<_> = (0..5).map(|i| Sample::new(&format!("s{i}"), 3 * UNIT)).collect();
    let all: Vec<_> = samples.iter().collect();
    let silent =
        Origin::with(&all, Manners { silent: AtomicBool::new(true), ..Manners::default() });
    let other = Origin::start(&all);
    let limits = cohort_mirror::CacheLimits { pauses: long_pauses(), ..quick() };
    let (cache, _dir) = cache_with(&[&silent, &other], limits).await;
    for sample in &samples {
        cache.assert_gives(sample).await;
    }
    assert_eq!(silent.requests(), 1, "it is left alone after that");
}

#[tokio::test]
async fn a_busy_origin_is_left_alone_as_long_as_it_asks() {
    let sample = Sample::new("busy", 3 * UNIT);
    let busy = Origin::with(&[&sample], Manners { busy: AtomicU32::new(20), ..Manners::default() });
    let (cache, _dir) = cache(&[&busy]).await;
    for _ in 0..5 {
        let answer = cache.send(&sample.path(), &[]).await;
        assert_eq!(answer.status(), 503);
        let after: u64 = answer.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=21).contains(&after), "{after}");
    }
    assert_eq!(busy.requests(), 1);
    let other = Origin::start(&[&sample]);
    let (cache, _dir) = crate::support::cache(&[&busy, &other]).await;
    cache.assert_gives(&sample).await;
}

#[tokio::test]
async fn what_does_not_exist_is_asked_for_once_in_a_while() {
    let sample = Sample::new("absent", UNIT);
    let origin = Origin::start(&[]);
    let (cache, _dir) = cache(&[&origin]).await;
    for _ in 0..10 {
        assert_eq!(cache.get(&sample.path()).await.0, 404);
    }
    assert_eq!(origin.requests(), 1);
    origin.put(&sample.path(), sample.bytes.clone());
    origin.put(&sample.units_path(), sample.hashes.to_bytes());
    gives_in_time(&cache, &sample).await;
}

#[tokio::test]
async fn no_origin_at_all_is_said_so_and_not_stormed() {
    let sample = Sample::new("away", UNIT);
    let mut origin = Origin::start(&[&sample]);
    let (cache, _dir) = cache(&[&origin]).await;
    origin.stop();
    let mut seen = BTreeSet::new();
    for _ in 0..50 {
        seen.insert(cache.get(&sample.path()).await.0);
    }
    assert!(seen.iter().all(|status| [502, 503].contains(status)), "{seen:?}");
    let asked = cache.metric("origin_requests_total").await;
    assert!(asked < 50, "{asked} requests for 50 readers");
    assert_eq!(cache.get("/readyz").await.0, 200, "what is kept can still be served");
}
