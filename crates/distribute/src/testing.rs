//! Builders for tests: artifacts, stores, and mirrors that misbehave.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use cohort_artifact::client::{ClientLimits, MirrorClient};
use cohort_artifact::{UNIT_BYTES, UnitHasher, UnitHashes};
use cohort_core::ids::Digest;
use cohort_core::orders::FetchOrder;
use cohort_core::release::{Release, Rollback};
use futures_util::{StreamExt as _, stream};
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE, RETRY_AFTER};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::fetch::{FetchError, fetch};
use crate::{ArtifactStore, ByteCounters, FetchContext, Limits, MirrorList, Progress, WirePeers};

pub(crate) const UNIT: usize = UNIT_BYTES as usize;

/// No test waits longer than this.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// An artifact with no repetitive bytes.
#[derive(Clone)]
pub(crate) struct Sample {
    pub(crate) bytes: Bytes,
    pub(crate) hashes: UnitHashes,
    pub(crate) release: Release,
}

impl Sample {
    pub(crate) fn new(seed: &str, length: usize) -> Self {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
        let mut hasher = UnitHasher::default();
        hasher.update(&bytes);
        let hashes = hasher.finish().unwrap();
        let release = Release {
            version: "1.0.0".parse().unwrap(),
            platform: "linux/amd64".parse().unwrap(),
            artifact: hashes.root().clone(),
            manifest: "0".repeat(64).parse().unwrap(),
            length: hashes.length(),
            unpacked_bytes: 64 << 30,
            entries: 250_000,
            rollback: Rollback::Revert,
        };
        Self { bytes: bytes.into(), hashes, release }
    }

    pub(crate) fn digest(&self) -> &Digest {
        &self.release.artifact
    }

    pub(crate) fn unit(&self, index: u32) -> &[u8] {
        let (start, length) = self.hashes.span(index).unwrap();
        &self.bytes[usize::try_from(start).unwrap()..][..length]
    }

    pub(crate) fn order(&self) -> FetchOrder {
        FetchOrder { release: self.release.clone(), from_mirror: true, sources: vec![] }
    }
}

/// A store in its own directory.
pub(crate) struct Disk {
    pub(crate) folder: TempDir,
    pub(crate) store: Arc<ArtifactStore>,
}

impl Disk {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = Arc::new(ArtifactStore::open(folder.path().join("a")).unwrap());
        Self { folder, store }
    }

    /// A disk whose free space is given by `free`.
    pub(crate) fn with(free: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        Self::at(tempfile::tempdir().unwrap(), free)
    }

    pub(crate) fn at(folder: TempDir, free: impl Fn() -> u64 + Send + Sync + 'static) -> Self {
        let free = Arc::new(move |_: &Path| Ok(free()));
        let store = ArtifactStore::open_on(folder.path().join("a"), free).unwrap();
        Self { folder, store: Arc::new(store) }
    }

    /// The store as a new process opens it.
    pub(crate) fn reopened(&self) -> Arc<ArtifactStore> {
        let path = self.folder.path().join("a");
        Arc::new(ArtifactStore::open(path).unwrap())
    }

    pub(crate) fn file(&self, name: &str) -> std::path::PathBuf {
        self.folder.path().join("a").join(name)
    }

    /// Stores an artifact, whole.
    pub(crate) fn hold(&self, sample: &Sample) {
        let claim = self.store.claim(sample.digest(), sample.release.length).unwrap();
        let hashes = claim.put_hashes(&sample.hashes.to_bytes()).unwrap();
        let part = claim.begin(hashes, 0).unwrap();
        for index in 0..sample.hashes.count() {
            part.write(index, sample.unit(index)).unwrap();
        }
        claim.finish(&part).unwrap();
    }

    pub(crate) fn assert_holds(&self, sample: &Sample) {
        let path = self.store.path(sample.digest()).expect("held whole");
        assert!(std::fs::read(path).unwrap() == sample.bytes, "not the right bytes");
        assert!(!self.file(&format!("{}.part", sample.digest())).exists());
    }
}

/// A mirror's behaviour; correct by default.
#[derive(Default)]
pub(crate) struct Manners {
    /// Breaks the connection after this many artifact bytes in total, and every later one.
    pub(crate) dies_after: Option<u64>,
    /// Flips a bit in these units.
    pub(crate) flips: Mutex<BTreeSet<u32>>,
    /// Sends everything in response to a range request.
    pub(crate) ignores_ranges: bool,
    /// Sends the head and then nothing more.
    pub(crate) hangs: AtomicBool,
    pub(crate) silent: bool,
    /// Sends one byte every 20 ms.
    pub(crate) trickles: bool,
    /// Sends 16 KiB every 20 ms.
    pub(crate) paced: bool,
    /// Responds with 503 this many times first.
    pub(crate) busy: AtomicU32,
    /// Announces a wrong total length.
    pub(crate) wrong_total: bool,
    /// Sends no length, and never ends.
    pub(crate) endless: bool,
    /// Sends no length, and ends early.
    pub(crate) short: bool,
    /// Flips a bit in the unit hashes.
    pub(crate) wrong_hashes: bool,
    /// Waits for the semaphore before sending an artifact's bytes beyond this many.
    pub(crate) gate: Option<(u64, Arc<tokio::sync::Semaphore>)>,
}

/// A mirror on loopback; stops when dropped.
pub(crate) struct Mirror {
    pub(crate) url: String,
    pub(crate) state: Arc<MirrorState>,
    _task: AbortOnDropHandle<()>,
}

pub(crate) struct MirrorState {
    pub(crate) manners: Manners,
    blobs: BTreeMap<String, Bytes>,
    /// Total artifact bytes sent so far.
    pub(crate) sent: AtomicU64,
    pub(crate) requests: AtomicU32,
}

impl Mirror {
    pub(crate) async fn start(samples: &[&Sample], manners: Manners) -> Self {
        let mut blobs = BTreeMap::new();
        for sample in samples {
            let mut hashes = sample.hashes.to_bytes();
            hashes[3] ^= u8::from(manners.wrong_hashes);
            blobs.insert(format!("/r/blobs/{}", sample.digest()), sample.bytes.clone());
            blobs.insert(format!("/r/blobs/{}.units", sample.digest()), hashes.into());
        }
        let state = Arc::new(MirrorState {
            manners,
            blobs,
            sent: AtomicU64::new(0),
            requests: AtomicU32::new(0),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/r", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&state));
        let task = tokio::spawn(async move {
            axum::serve(listener, router).await.unwrap();
        });
        Self { url, state, _task: AbortOnDropHandle::new(task) }
    }

    pub(crate) fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::Relaxed)
    }

    pub(crate) fn requests(&self) -> u32 {
        self.state.requests.load(Ordering::Relaxed)
    }
}

async fn answer(State(state): State<Arc<MirrorState>>, request: Request) -> Response {
    state.requests.fetch_add(1, Ordering::Relaxed);
    let manners = &state.manners;
    let status = |code: u16| Response::builder().status(code);
    let path = request.uri().path();
    let Some(blob) = state.blobs.get(path).cloned() else {
        return status(404).body(Body::empty()).unwrap();
    };
    if manners.silent {
        std::future::pending::<()>().await;
    }
    let busy =
        manners.busy.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1));
    if busy.is_ok() {
        return status(503).header(RETRY_AFTER, "1").body(Body::empty()).unwrap();
    }
    if path.ends_with(".units") {
        return status(200).body(Body::from(blob)).unwrap();
    }
    let total = blob.len();
    let range = request.headers().get(RANGE).filter(|_| !manners.ignores_ranges);
    let (start, end) = match range.map(|range| range.to_str().unwrap()) {
        None => (0, total),
        Some(range) => {
            let (start, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
            (start.parse().unwrap(), last.parse::<usize>().unwrap() + 1)
        }
    };
    let mut bytes = blob[start..end].to_vec();
    for unit in manners.flips.lock().iter() {
        let at = *unit as usize * UNIT + 5;
        if (start..end).contains(&at) {
            bytes[at - start] ^= 1;
        }
    }
    let mut response = status(if range.is_some() { 206 } else { 200 });
    if range.is_some() {
        let said = total + usize::from(manners.wrong_total);
        response = response.header(CONTENT_RANGE, format!("bytes {start}-{}/{said}", end - 1));
    }
    if manners.short {
        bytes.truncate(bytes.len() / 2);
    } else if !manners.endless {
        response = response.header(CONTENT_LENGTH, bytes.len());
    }
    response.body(body(&state, start as u64, bytes.into())).unwrap()
}

fn body(state: &Arc<MirrorState>, start: u64, bytes: Bytes) -> Body {
    let state = Arc::clone(state);
    let piece = if state.manners.trickles { 1 } else { 16 << 10 };
    let pieces = stream::unfold((start, bytes), move |(at, mut rest)| {
        let state = Arc::clone(&state);
        async move {
            let manners = &state.manners;
            if manners.hangs.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            if let Some((from, gate)) = &manners.gate
                && at >= *from
            {
                let _pass = gate.acquire().await.unwrap();
            }
            if manners.trickles || manners.paced {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if rest.is_empty() {
                let more = manners.endless.then(|| Bytes::from_static(&[7; 1024]));
                return more.map(|more| (Ok(more), (at, rest)));
            }
            let now = rest.split_to(piece.min(rest.len()));
            let length = now.len() as u64;
            let sent = state.sent.fetch_add(length, Ordering::Relaxed);
            if manners.dies_after.is_some_and(|limit| sent >= limit) {
                return Some((Err(std::io::Error::other("died")), (at, Bytes::new())));
            }
            Some((Ok(now), (at + length, rest)))
        }
    });
    Body::from_stream(pieces.boxed())
}

/// Limits under which faults show within a fraction of a second.
pub(crate) fn quick() -> Limits {
    Limits {
        request_units_first: 8,
        request_units_max: 16,
        first_byte_ms_max: 400,
        idle_ms_max: 400,
        unit_ms_max: 1_000,
        backoff_ms_min: 20,
        backoff_ms_max: 200,
        wrong_bytes_ms: 100,
        absent_ms: 50,
        // On its own immediately: only groups have a leader.
        no_leader_ms: 0,
        pull_after_ms: 1_000,
        give_up_ms: 10_000,
        reserve_bytes: 1 << 20,
        ..Limits::default()
    }
}

/// Limits that even a very busy machine meets: tests in which nothing should fail must not fail by
/// the clock.
pub(crate) fn patient() -> Limits {
    Limits {
        first_byte_ms_max: 60_000,
        idle_ms_max: 60_000,
        unit_ms_max: 60_000,
        request_ms_max: 60_000,
        silence_ms_max: 30_000,
        link_begin_ms_max: 30_000,
        pull_after_ms: 60_000,
        give_up_ms: 120_000,
        ..quick()
    }
}

pub(crate) fn mirror_list(mirrors: &[&Mirror]) -> Arc<MirrorList> {
    // The fetch's limits apply, not these.
    let limit = Duration::from_secs(120);
    let limits = ClientLimits { connect: limit, first_byte: limit, idle: limit, file: limit };
    let mirrors = mirrors.iter().map(|mirror| mirror.url.parse().unwrap()).collect();
    Arc::new(MirrorList::new(mirrors, MirrorClient::new(limits).unwrap()).unwrap())
}

pub(crate) fn context(disk: &Disk, mirrors: &[&Mirror], limits: Limits) -> FetchContext {
    with_peers(disk, mirrors, limits, WirePeers::none())
}

pub(crate) fn with_peers(
    disk: &Disk,
    mirrors: &[&Mirror],
    limits: Limits,
    peers: WirePeers,
) -> FetchContext {
    FetchContext {
        store: Arc::clone(&disk.store),
        mirrors: mirror_list(mirrors),
        peers,
        limits: Arc::new(limits),
        counters: Arc::new(ByteCounters::default()),
        download: Arc::default(),
        guides: Arc::default(),
    }
}

/// Fetches to the end, and returns the last progress.
pub(crate) async fn fetch_once(
    context: &FetchContext,
    order: FetchOrder,
) -> (Result<(), FetchError>, Progress) {
    let (_orders, receiver) = watch::channel(order);
    let (progress, shown) = watch::channel(Progress::default());
    let cancel = CancellationToken::new();
    let fetching = Box::pin(fetch(context, receiver, &progress, &cancel));
    let result = tokio::time::timeout(DEADLINE, fetching).await.expect("the fetch ends in time");
    let last = shown.borrow().clone();
    (result, last)
}
