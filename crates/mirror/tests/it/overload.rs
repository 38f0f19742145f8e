//! More readers than slots, and readers who do not read.

use std::sync::Arc;
use std::time::Duration;

use cohort_mirror::CacheLimits;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::Semaphore;

use crate::support::{Manners, Origin, Sample, UNIT, cache_with, quick};

#[tokio::test]
async fn beyond_its_places_it_says_when_to_come_back() {
    let sample = Sample::new("places", 10 * UNIT);
    let gate = Arc::new(Semaphore::new(0));
    let manners = Manners { gate: Some(Arc::clone(&gate)), ..Manners::default() };
    let origin = Origin::with(&[&sample], manners);
    let limits = CacheLimits { requests_max: 2, answer_max: Duration::from_secs(20), ..quick() };
    let (cache, _dir) = cache_with(&[&origin], limits).await;
    let cache = Arc::new(cache);
    let readers: Vec<_> = (0..2)
        .map(|_| {
            let (cache, sample) = (Arc::clone(&cache), sample.clone());
            tokio::spawn(async move { cache.assert_gives(&sample).await })
        })
        .collect();
    cache.metric_becomes("requests", 2).await;
    for path in [sample.path(), "/metadata/timestamp.json".to_owned()] {
        let answer = cache.send(&path, &[]).await;
        assert_eq!(answer.status(), 503);
        assert!(answer.headers().contains_key("retry-after"));
    }
    // Probes are not turned away.
    assert_eq!(cache.get("/livez").await.0, 200);
    assert_eq!(cache.get("/readyz").await.0, 200);
    assert_eq!(cache.metric("overloaded_total").await, 2);
    gate.add_permits(1);
    for reader in readers {
        reader.await.unwrap();
    }
    cache.metric_becomes("requests", 0).await;
    cache.assert_gives(&sample).await;
}

#[tokio::test]
async fn a_reader_who_has_gone_needs_no_place() {
    let sample = Sample::new("gone", 10 * UNIT);
    let gate = Arc::new(Semaphore::new(0));
    let manners = Manners { gate: Some(Arc::clone(&gate)), ..Manners::default() };
    let origin = Origin::with(&[&sample], manners);
    let limits = CacheLimits { answer_max: Duration::from_secs(20), ..quick() };
    let (cache, _dir) = cache_with(&[&origin], limits).await;
    let cache = Arc::new(cache);
    let reader = {
        let (cache, sample) = (Arc::clone(&cache), sample.clone());
        tokio::spawn(async move { cache.assert_gives(&sample).await })
    };
    cache.metric_becomes("requests", 1).await;
    reader.abort();
    cache.metric_becomes("requests", 0).await;
    // What was in transit for it goes to the next reader.
    gate.add_permits(1);
    cache.assert_gives(&sample).await;
    assert_eq!(origin.units_asked(&sample), [1; 10]);
}

#[tokio::test]
async fn a_reader_who_does_not_read_loses_its_place() {
    // More than the buffers of two sockets.
    let sample = Sample::new("stalled", 40 << 20);
    let origin = Origin::start(&[&sample]);
    let limits = CacheLimits { reader_max: Duration::from_millis(300), ..quick() };
    let (cache, _dir) = cache_with(&[&origin], limits).await;
    let address = cache.url.strip_prefix("http://").unwrap();
    let mut stalled = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {} HTTP/1.1\r\nhost: x\r\n\r\n", sample.path());
    stalled.write_all(request.as_bytes()).await.unwrap();
    cache.metric_becomes("requests", 1).await;
    cache.metric_becomes("requests", 0).await;
    assert!(cache.metric("served_bytes_total").await < 40 << 20);
    cache.assert_gives(&sample).await;
}
