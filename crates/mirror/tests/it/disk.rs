//! The disk: restarts, damage, eviction, and no room.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cohort_mirror::{Cache, CacheLimits, MirrorError};
use tokio::sync::Semaphore;

use crate::support::{Manners, Origin, Running, Sample, UNIT, cache, cache_with, config, quick};

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir.join("cache/blobs"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_restart_goes_on_where_it_was() {
    let sample = Sample::new("restart", 40 * UNIT + 9);
    let origin = Origin::start(&[&sample]);
    let (cache, dir) = cache(&[&origin]).await;
    let range = format!("bytes={}-{}", 4 * UNIT, 20 * UNIT - 1);
    let answer = cache.send(&sample.path(), &[("range", &range)]).await;
    assert!(answer.bytes().await.unwrap() == sample.bytes[4 * UNIT..20 * UNIT]);
    cache.stop().await;
    // A crash's unfinished files are swept.
    let torn = Sample::new("torn", 2 * UNIT);
    fs::write(dir.path().join("cache/blobs").join(torn.digest().as_str()), "no hashes").unwrap();
    fs::write(dir.path().join("cache/files/.unfinished-x"), "torn").unwrap();
    origin.forget_requests();
    let cache = Running::start(config(dir.path(), &[&origin], quick())).await;
    assert_eq!(cache.get(&torn.path()).await.0, 404);
    assert_eq!(names(dir.path()), [sample.digest().to_string()]);
    assert!(!dir.path().join("cache/files/.unfinished-x").exists());
    cache.assert_gives(&sample).await;
    let asked = origin.units_asked(&sample);
    assert_eq!(asked[4..20], [0; 16]);
    assert_eq!(asked[40], 0);
    assert!(asked[..4].iter().chain(&asked[20..40]).all(|count| *count == 1), "{asked:?}");
    assert_eq!(cache.metric("damaged_total").await, 0, "what never came is not damaged");
    // In runs, not one by one.
    assert!(origin.asked(&sample.path()) <= 4, "{} requests", origin.asked(&sample.path()));
}

#[tokio::test]
async fn damage_on_the_disk_is_found_and_mended() {
    let sample = Sample::new("rot", 10 * UNIT);
    let origin = Origin::start(&[&sample]);
    let (cache, dir) = cache(&[&origin]).await;
    cache.assert_gives(&sample).await;
    origin.forget_requests();
    let path = dir.path().join("cache").join(sample.path().trim_start_matches('/'));
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.write_all_at(b"rotten", 3 * UNIT as u64 + 50).unwrap();
    cache.assert_gives(&sample).await;
    let mut wanted = vec![0; 10];
    wanted[3] = 1;
    assert_eq!(origin.units_asked(&sample), wanted);
    assert_eq!(cache.metric("damaged_total").await, 1);
    assert!(fs::read(&path).unwrap()[..sample.bytes.len()] == sample.bytes, "mended");
    // Corrupt hashes at start: the artifact is removed and fetched again.
    cache.stop().await;
    file.write_all_at(&[7; 320], sample.bytes.len() as u64).unwrap();
    let cache = Running::start(config(dir.path(), &[&origin], quick())).await;
    cache.assert_gives(&sample).await;
    assert_eq!(fs::read(&path).unwrap()[sample.bytes.len()..], sample.hashes.to_bytes());
    assert_eq!(cache.metric("artifacts").await, 1);
}

#[tokio::test]
async fn the_least_recently_used_goes_first() {
    // 48 of the 64 MiB are for artifacts: four of these, not five.
    let samples: Vec<_> = (0..5).map(|i| Sample::new(&format!("lru{i}"), 11 << 20)).collect();
    let all: Vec<_> = samples.iter().collect();
    let origin = Origin::start(&all);
    let (cache, dir) = cache(&[&origin]).await;
    let head = async |cache: &Running, sample: &Sample| {
        let url = format!("{}{}", cache.url, sample.path());
        assert_eq!(cache.client.head(url).send().await.unwrap().status(), 200);
    };
    let kept = || {
        let names = names(dir.path());
        let held = samples.iter().map(|sample| names.contains(&sample.digest().to_string()));
        held.collect::<Vec<_>>()
    };
    for sample in &samples[..4] {
        head(&cache, sample).await;
    }
    head(&cache, &samples[0]).await;
    head(&cache, &samples[4]).await;
    assert_eq!(kept(), [true, false, true, true, true]);
    assert_eq!(cache.metric("evictions_total").await, 1);
    assert!(cache.metric("cache_bytes").await <= cache.metric("cache_bytes_max").await);
    head(&cache, &samples[1]).await;
    assert_eq!(kept(), [true, true, false, true, true]);
    // The order survives a restart, even for files that were only read.
    cache.stop().await;
    for (age, sample) in samples.iter().enumerate() {
        let path = dir.path().join("cache").join(sample.path().trim_start_matches('/'));
        let Ok(file) = OpenOptions::new().write(true).open(path) else { continue };
        let at = std::time::SystemTime::now() - std::time::Duration::from_secs(1000 - age as u64);
        file.set_modified(at).unwrap();
    }
    let cache = Running::start(config(dir.path(), &[&origin], quick())).await;
    head(&cache, &samples[0]).await;
    cache.stop().await;
    let cache = Running::start(config(dir.path(), &[&origin], quick())).await;
    head(&cache, &samples[2]).await;
    assert_eq!(kept(), [true, false, true, true, true]);
}

#[tokio::test]
async fn a_smaller_cache_shrinks_at_the_start() {
    let samples: Vec<_> = (0..3).map(|i| Sample::new(&format!("small{i}"), 40 << 20)).collect();
    let all: Vec<_> = samples.iter().collect();
    let origin = Origin::start(&all);
    let dir = tempfile::tempdir().unwrap();
    let mut config = config(dir.path(), &[&origin], quick());
    config.cache_bytes = 256 << 20;
    let cache = Running::start(config.clone()).await;
    for sample in &samples {
        assert_eq!(cache.send(&sample.path(), &[("range", "bytes=0-9")]).await.status(), 206);
    }
    assert_eq!(cache.metric("artifacts").await, 3);
    cache.stop().await;
    config.cache_bytes = 64 << 20;
    let cache = Running::start(config).await;
    assert_eq!(cache.metric("artifacts").await, 1);
    assert_eq!(names(dir.path()).len(), 1);
}

#[tokio::test]
async fn what_is_in_use_stays() {
    let first = Sample::new("used", 30 << 20);
    let second = Sample::new("wants room", 30 << 20);
    let gate = Arc::new(Semaphore::new(0));
    let manners = Manners { gate: Some(Arc::clone(&gate)), ..Manners::default() };
    let slow = Origin::with(&[&first], manners);
    let origin = Origin::start(&[&second]);
    let limits = CacheLimits { answer_max: Duration::from_secs(20), ..quick() };
    let (cache, dir) = cache_with(&[&slow, &origin], limits).await;
    let cache = Arc::new(cache);
    let reading = {
        let (cache, first) = (Arc::clone(&cache), first.clone());
        tokio::spawn(async move { cache.assert_gives(&first).await })
    };
    cache.metric_becomes("artifacts", 1).await;
    // Both do not fit, and the first is being read: the second is only forwarded.
    cache.assert_gives(&second).await;
    assert!(cache.metric("passed_on_total").await >= 480 - 1);
    assert_eq!(cache.metric("evictions_total").await, 0);
    gate.add_permits(1);
    reading.await.unwrap();
    assert!(names(dir.path()).contains(&first.digest().to_string()));
}

#[tokio::test]
async fn a_full_disk_passes_on_what_is_right() {
    let sample = Sample::new("full", 40 * UNIT + 3);
    let liar = Origin::with(
        &[&sample],
        Manners { flips: parking_lot::Mutex::new([7].into()), ..Manners::default() },
    );
    let origin = Origin::start(&[&sample]);
    let limits = CacheLimits { free_bytes_min: u64::MAX / 2, ..quick() };
    let (cache, dir) = cache_with(&[&liar, &origin], limits).await;
    cache.assert_gives(&sample).await;
    assert!(cache.metric("passed_on_total").await >= 40);
    assert_eq!((cache.metric("artifacts").await, names(dir.path()).len()), (0, 0));
    // One after another, one request each: no unit is fetched twice for one reader.
    origin.forget_requests();
    cache.assert_gives(&sample).await;
    assert!(origin.units_asked(&sample).iter().all(|count| *count <= 1));
    // Larger than the whole cache.
    let huge = Sample::new("huge", 70 << 20);
    let origin = Origin::start(&[&huge]);
    let (cache, dir) = crate::support::cache(&[&origin]).await;
    cache.assert_gives(&huge).await;
    assert_eq!(names(dir.path()).len(), 0);
}

#[tokio::test]
async fn a_folder_has_one_cache() {
    let origin = Origin::start(&[]);
    let (cache, dir) = cache(&[&origin]).await;
    let again = Cache::start(config(dir.path(), &[&origin], quick())).await;
    assert!(matches!(again, Err(MirrorError::InUse { .. })));
    cache.stop().await;
    Running::start(config(dir.path(), &[&origin], quick())).await.stop().await;
    let mut wrong = config(dir.path(), &[], quick());
    assert!(matches!(Cache::start(wrong.clone()).await, Err(MirrorError::Config { .. })));
    wrong.origins = vec!["ftp://x/".to_owned()];
    assert!(matches!(Cache::start(wrong).await, Err(MirrorError::Origin(_))));
}
