//! Metadata and targets: always revalidated, last copies, and names that are hashes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use cohort_identity::sha256_hex;

use crate::support::{DEADLINE, Origin, Running, cache, config, long_pauses, quick};

const TIMESTAMP: &str = "/metadata/timestamp.json";

async fn text(cache: &Running, path: &str) -> String {
    let (status, body) = cache.get(path).await;
    assert_eq!(status, 200, "{path}");
    String::from_utf8(body.unwrap().to_vec()).unwrap()
}

#[tokio::test]
async fn metadata_is_asked_for_again_every_time() {
    let origin = Origin::start(&[]);
    origin.put(TIMESTAMP, "one");
    let (cache, _dir) = cache(&[&origin]).await;
    assert_eq!(text(&cache, TIMESTAMP).await, "one");
    assert_eq!(text(&cache, TIMESTAMP).await, "one");
    assert_eq!((origin.asked(TIMESTAMP), origin.asked_with_tag(TIMESTAMP)), (2, 1));
    assert_eq!(cache.metric("origin_bytes_total").await, 3, "the second time nothing came");
    origin.put(TIMESTAMP, "two");
    let answer = cache.send(TIMESTAMP, &[]).await;
    assert_eq!(answer.headers()["cache-control"], "no-cache");
    let etag = answer.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(answer.text().await.unwrap(), "two");
    assert_eq!(cache.send(TIMESTAMP, &[("if-none-match", &etag)]).await.status(), 304);
    assert_eq!(origin.asked(TIMESTAMP), 4);
}

/// Keys were changed: the next root is there, after the cache has said that there is none.
#[tokio::test]
async fn a_new_root_is_found_although_it_was_absent() {
    let origin = Origin::start(&[]);
    let (cache, _dir) = cache(&[&origin]).await;
    assert_eq!(cache.get("/metadata/2.root.json").await.0, 404);
    origin.put("/metadata/2.root.json", "second");
    let end = Instant::now() + DEADLINE;
    // On a busy machine, an origin that is late counts as away, and the last answer stands.
    while cache.get("/metadata/2.root.json").await != (200, Some("second".into())) {
        assert!(Instant::now() < end, "the cache has not found the new root");
    }
}

#[tokio::test]
async fn the_last_copy_is_given_while_origins_are_away() {
    let mut origin = Origin::start(&[]);
    origin.put(TIMESTAMP, "last");
    origin.put("/metadata/1.root.json", "root");
    let (cache, dir) = cache(&[&origin]).await;
    assert_eq!(text(&cache, TIMESTAMP).await, "last");
    // Readers have the first one, and ask for the next.
    assert_eq!(cache.get("/metadata/2.root.json").await.0, 404);
    // Anybody can ask for any number: none of those is kept.
    assert_eq!(cache.get("/metadata/9.root.json").await.0, 404);
    let kept = std::fs::read_dir(dir.path().join("cache/files")).unwrap().count();
    assert_eq!(kept, 3, "the timestamp, the root, and that it is the last");
    origin.stop();
    assert_eq!(text(&cache, TIMESTAMP).await, "last");
    assert!(cache.metric("last_copies_total").await >= 1);
    // Also after a restart, and also the fact that there is no newer root.
    cache.stop().await;
    let cache = Running::start(config(dir.path(), &[&origin], quick())).await;
    assert_eq!(text(&cache, TIMESTAMP).await, "last");
    assert_eq!(text(&cache, "/metadata/1.root.json").await, "root");
    assert_eq!(cache.get("/metadata/2.root.json").await.0, 404);
    assert!([502, 503].contains(&cache.get("/metadata/9.snapshot.json").await.0));
    // Half of the file on disk is not a copy.
    cache.stop().await;
    for entry in std::fs::read_dir(dir.path().join("cache/files")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() - 1]).unwrap();
    }
    let cache = Running::start(config(dir.path(), &[&origin], quick())).await;
    assert!([502, 503].contains(&cache.get(TIMESTAMP).await.0));
}

#[tokio::test]
async fn a_silent_origin_costs_one_wait() {
    let origin = Origin::start(&[]);
    origin.put(TIMESTAMP, "last");
    let limits = cohort_mirror::CacheLimits { pauses: long_pauses(), ..quick() };
    let (cache, _dir) = crate::support::cache_with(&[&origin], limits).await;
    assert_eq!(text(&cache, TIMESTAMP).await, "last");
    origin.manners().silent.store(true, Ordering::Relaxed);
    for _ in 0..20 {
        assert_eq!(text(&cache, TIMESTAMP).await, "last");
    }
    assert_eq!(origin.asked(TIMESTAMP), 2);
}

#[tokio::test]
async fn a_crowd_asks_once() {
    let origin = Origin::start(&[]);
    origin.put(TIMESTAMP, "crowd");
    let (cache, _dir) = cache(&[&origin]).await;
    let cache = Arc::new(cache);
    origin.manners().silent.store(false, Ordering::Relaxed);
    let readers: Vec<_> = (0..100)
        .map(|_| {
            let cache = Arc::clone(&cache);
            tokio::spawn(async move { assert_eq!(text(&cache, TIMESTAMP).await, "crowd") })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    assert!(origin.asked(TIMESTAMP) < 60, "{} requests for 100 readers", origin.asked(TIMESTAMP));
}

#[tokio::test]
async fn a_target_is_what_its_name_says() {
    let body = "{\"app\":\"web\"}";
    let path = format!(
        "/targets/apps/web/1.0.0/linux~amd64/{}.manifest.json",
        sha256_hex(body.as_bytes())
    );
    let liar = Origin::start(&[]);
    liar.put(&path, "{\"app\":\"bad\"}");
    let (alone, _dir) = cache(&[&liar]).await;
    assert_eq!(alone.get(&path).await.0, 502);
    let mut honest = Origin::start(&[]);
    honest.put(&path, body);
    let (cache, _other) = cache(&[&liar, &honest]).await;
    assert_eq!(text(&cache, &path).await, body);
    // It never changes, so no origin is asked again.
    honest.forget_requests();
    assert_eq!(text(&cache, &path).await, body);
    assert_eq!(honest.requests(), 0);
    honest.stop();
    assert_eq!(text(&cache, &path).await, body);
}

#[tokio::test]
async fn what_is_too_long_for_metadata_is_refused() {
    let origin = Origin::start(&[]);
    origin.put(TIMESTAMP, vec![b' '; (256 << 10) + 1]);
    origin.put("/metadata/7.targets.json", vec![b' '; (256 << 10) + 1]);
    let (cache, _dir) = cache(&[&origin]).await;
    assert_eq!(cache.get(TIMESTAMP).await.0, 502);
    let begun = Instant::now();
    while cache.get("/metadata/7.targets.json").await.0 != 200 {
        assert!(begun.elapsed() < DEADLINE, "the origin is forgiven");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
