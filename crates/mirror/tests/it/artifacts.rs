//! Artifacts: cold, warm, in ranges, and with many concurrent readers.

use crate::support::{Origin, Sample, UNIT, cache};

#[tokio::test]
async fn what_was_fetched_once_is_not_fetched_again() {
    // Of a single byte, exactly one unit, a bit more, and several runs.
    for length in [1, UNIT, UNIT + 1, 50 * UNIT + 777] {
        let sample = Sample::new("warm", length);
        let origin = Origin::start(&[&sample]);
        let (cache, _dir) = cache(&[&origin]).await;
        cache.assert_gives(&sample).await;
        assert!(origin.units_asked(&sample).iter().all(|count| *count == 1), "{length}");
        origin.forget_requests();
        cache.assert_gives(&sample).await;
        assert_eq!(origin.requests(), 0);
        assert!(cache.metric("hits_total").await >= u64::from(sample.hashes.count()));
        assert_eq!(cache.metric("misses_total").await, u64::from(sample.hashes.count()));
    }
}

#[tokio::test]
async fn a_range_fetches_its_units_only() {
    let sample = Sample::new("range", 40 * UNIT + 5);
    let origin = Origin::start(&[&sample]);
    let (cache, _dir) = cache(&[&origin]).await;
    let total = sample.bytes.len();
    for (range, first, last) in [
        (format!("bytes={}-{}", 2 * UNIT + 9, 5 * UNIT), 2 * UNIT + 9, 5 * UNIT),
        ("bytes=0-0".to_owned(), 0, 0),
        (format!("bytes={}-", total - 3), total - 3, total - 1),
        ("bytes=-2".to_owned(), total - 2, total - 1),
    ] {
        let answer = cache.send(&sample.path(), &[("range", &range)]).await;
        assert_eq!(answer.status(), 206);
        let said = answer.headers()["content-range"].to_str().unwrap().to_owned();
        assert_eq!(said, format!("bytes {first}-{last}/{total}"));
        assert_eq!(answer.content_length(), Some((last - first + 1) as u64));
        assert!(answer.bytes().await.unwrap() == sample.bytes[first..=last]);
    }
    let mut wanted = vec![0; 41];
    for unit in [0, 2, 3, 4, 5, 40] {
        wanted[unit] = 1;
    }
    assert_eq!(origin.units_asked(&sample), wanted);
    let outside = cache.send(&sample.path(), &[("range", &format!("bytes={total}-"))]).await;
    assert_eq!(outside.status(), 416);
}

#[tokio::test]
async fn heads_tags_and_unit_hashes() {
    let sample = Sample::new("head", 3 * UNIT + 1);
    let origin = Origin::start(&[&sample]);
    let (cache, _dir) = cache(&[&origin]).await;
    let url = format!("{}{}", cache.url, sample.path());
    let head = cache.client.head(&url).send().await.unwrap();
    assert_eq!(head.status(), 200);
    assert_eq!(head.headers()["content-length"], sample.bytes.len().to_string().as_str());
    assert_eq!(head.headers()["accept-ranges"], "bytes");
    let etag = head.headers()["etag"].to_str().unwrap().to_owned();
    assert_eq!(etag, format!("\"{}\"", sample.digest()));
    assert_eq!(cache.send(&sample.path(), &[("if-none-match", &etag)]).await.status(), 304);
    let (status, hashes) = cache.get(&sample.units_path()).await;
    assert_eq!((status, hashes.unwrap().to_vec()), (200, sample.hashes.to_bytes()));
    // Only the hashes and the unit that shows the length were needed so far.
    assert_eq!(origin.units_asked(&sample), [0, 0, 0, 1]);
}

#[tokio::test]
async fn a_hundred_readers_fetch_each_unit_once() {
    let sample = Sample::new("crowd", 60 * UNIT + 100);
    let origin = Origin::start(&[&sample]);
    let (cache, _dir) = cache(&[&origin]).await;
    let cache = std::sync::Arc::new(cache);
    let readers: Vec<_> = (0..100)
        .map(|reader| {
            let (cache, sample) = (std::sync::Arc::clone(&cache), sample.clone());
            tokio::spawn(async move {
                if reader % 2 == 0 {
                    return cache.assert_gives(&sample).await;
                }
                let from = reader * UNIT / 2;
                let range = format!("bytes={from}-");
                let answer = cache.send(&sample.path(), &[("range", &range)]).await;
                assert!(answer.bytes().await.unwrap() == sample.bytes[from..]);
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    assert_eq!(origin.asked(&sample.units_path()), 1);
    assert_eq!(origin.units_asked(&sample), vec![1; 61]);
}

#[tokio::test]
async fn nothing_but_artifacts_is_a_blob() {
    let origin = Origin::start(&[]);
    let (cache, _dir) = cache(&[&origin]).await;
    for path in ["/blobs/x", "/blobs/../lock", "/blobs/a/b", "/lock", "/metadata/x", "/targets/.x"]
    {
        assert_eq!(cache.get(path).await.0, 404, "{path}");
    }
    assert_eq!(origin.requests(), 0);
}
