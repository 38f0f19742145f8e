use std::fs::File;
use std::sync::Arc;

use bytes::Bytes;
use cohort_artifact::{UNIT_BYTES, UnitHasher};
use cohort_wire::limits::ServerLimits;
use tokio::net::TcpListener;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{Blob, Unit};
use crate::cache::Shared;
use crate::config::CacheLimits;
use crate::metrics::Metrics;
use crate::origins::Origins;

const UNIT: usize = UNIT_BYTES as usize;

/// The internals of a cache, and an origin with one artifact of ten units.
struct Bench {
    cache: Arc<Shared>,
    bytes: Bytes,
    digest: cohort_core::ids::Digest,
    dir: tempfile::TempDir,
    _origin: DropGuard,
}

impl Bench {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut bytes = vec![0; 10 * UNIT];
        blake3::Hasher::new().finalize_xof().fill(&mut bytes);
        let mut hasher = UnitHasher::default();
        hasher.update(&bytes);
        let hashes = hasher.finish().unwrap();
        let digest = hashes.root().clone();
        let origin = dir.path().join("origin");
        std::fs::create_dir_all(origin.join("blobs")).unwrap();
        let units = hashes.to_bytes();
        std::fs::write(origin.join("blobs").join(digest.as_str()), &bytes).unwrap();
        std::fs::write(origin.join("blobs").join(format!("{digest}.units")), units).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = crate::static_files(&origin);
        let stop = CancellationToken::new();
        let limits = ServerLimits::default();
        tokio::spawn(cohort_wire::http::serve_plain(listener, router, limits, stop.clone()));
        let limits = Arc::new(CacheLimits { free_bytes_min: 0, ..CacheLimits::default() });
        let metrics = Arc::new(Metrics::default());
        let settings = crate::BucketSettings::default();
        let origins = Origins::new(&[url], &settings, Arc::clone(&limits), Arc::clone(&metrics));
        let origins = origins.unwrap();
        let cache = Shared::open(dir.path(), 64 << 20, limits, metrics, origins).unwrap();
        let _origin = stop.drop_guard();
        Self { cache, bytes: bytes.into(), digest, dir, _origin }
    }

    fn unit(&self, index: usize) -> Bytes {
        self.bytes.slice(index * UNIT..(index + 1) * UNIT)
    }
}

#[tokio::test]
async fn a_disk_that_refuses_a_unit_ends_the_keeping_and_not_the_reading() {
    let bench = Bench::new().await;
    let whole = bench.cache.artifact(&bench.digest).await.unwrap();
    // The same artifact with a file that cannot be written, as on a full disk.
    let path = bench.dir.path().join("blobs").join(bench.digest.as_str());
    let file = Some(File::open(path).unwrap());
    let hashes = whole.hashes.clone();
    let full = Arc::new(Blob::new(hashes, file, false, Arc::clone(&bench.cache)));
    assert!(full.unit(0, 10).await.unwrap() == bench.unit(0));
    while full.is_kept() {
        tokio::task::yield_now().await;
    }
    for index in 1..10 {
        assert!(full.unit(index, 10).await.unwrap() == bench.unit(index as usize));
    }
    assert_eq!(bench.cache.metrics.passed_on.get(), 9);
    // Only its own entry would have been dropped: the other's is still there.
    assert_eq!(bench.cache.store.usage().0, 1);
    bench.cache.disk_refused(&whole);
    assert_eq!(bench.cache.store.usage(), (0, 0));
    assert_eq!(std::fs::read_dir(bench.dir.path().join("blobs")).unwrap().count(), 0);
}

#[tokio::test]
async fn the_next_run_is_fetched_before_it_is_read() {
    let bench = Bench::new().await;
    let blob = bench.cache.artifact(&bench.digest).await.unwrap();
    assert!(blob.unit(2, 6).await.unwrap() == bench.unit(2));
    for index in 2..6 {
        assert!(blob.unit(index, 6).await.unwrap() == bench.unit(index as usize));
    }
    // Nothing outside the requested part; the last unit showed the length.
    let missing: Vec<u32> =
        (0..10).filter(|at| blob.units.lock().states[*at as usize] == Unit::Missing).collect();
    assert_eq!(missing, [0, 1, 6, 7, 8]);
}
