//! Artifacts, origins with configurable behaviour, and caches that end with the test.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use bytes::Bytes;
use cohort_artifact::{Digest, UNIT_BYTES, UnitHasher, UnitHashes};
use cohort_base::retry::Schedule;
use cohort_mirror::{BucketSettings, Cache, CacheConfig, CacheLimits};
use futures_util::{StreamExt as _, stream};
use http::header::{
    CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_NONE_MATCH, LAST_MODIFIED, RANGE, RETRY_AFTER,
};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

pub(crate) const UNIT: usize = UNIT_BYTES as usize;

/// No test waits longer than this.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// An artifact with no repetitive bytes.
#[derive(Clone)]
pub(crate) struct Sample {
    pub(crate) bytes: Bytes,
    pub(crate) hashes: UnitHashes,
}

impl Sample {
    pub(crate) fn new(seed: &str, length: usize) -> Self {
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
        let mut hasher = UnitHasher::default();
        hasher.update(&bytes);
        Self { bytes: bytes.into(), hashes: hasher.finish().unwrap() }
    }

    pub(crate) fn digest(&self) -> &Digest {
        self.hashes.root()
    }

    pub(crate) fn path(&self) -> String {
        format!("/blobs/{}", self.digest())
    }

    pub(crate) fn units_path(&self) -> String {
        format!("{}.units", self.path())
    }
}

/// An origin's behaviour; correct by default.
#[derive(Default)]
pub(crate) struct Manners {
    /// Breaks the connection after this many artifact bytes in total, until it is set again.
    pub(crate) dies_after: Mutex<Option<u64>>,
    /// Sends these units with a bit flipped.
    pub(crate) flips: Mutex<BTreeSet<u32>>,
    /// Flips a bit in the unit hashes.
    pub(crate) wrong_hashes: AtomicBool,
    /// Ends every artifact this many bytes early, and adapts all lengths.
    pub(crate) shorter: usize,
    /// Sends everything in response to a range request.
    pub(crate) ignores_ranges: bool,
    /// Accepts connections and never responds.
    pub(crate) silent: AtomicBool,
    /// Responds with 503 and this `Retry-After`, in seconds.
    pub(crate) busy: AtomicU32,
    /// Waits for the semaphore before sending an artifact's bytes.
    pub(crate) gate: Option<Arc<Semaphore>>,
}

/// An origin on loopback. Stopping it closes all its connections.
pub(crate) struct Origin {
    pub(crate) url: String,
    pub(crate) state: Arc<OriginState>,
    runtime: Option<Runtime>,
}

pub(crate) struct OriginState {
    pub(crate) manners: Manners,
    files: Mutex<BTreeMap<String, Bytes>>,
    sent: AtomicU64,
    log: Mutex<Vec<Asked>>,
}

/// One request: path, range and whether it had a tag.
type Asked = (String, Option<(usize, usize)>, bool);

impl Origin {
    pub(crate) fn start(samples: &[&Sample]) -> Self {
        Self::with(samples, Manners::default())
    }

    pub(crate) fn with(samples: &[&Sample], manners: Manners) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}/r", listener.local_addr().unwrap());
        let state = Arc::new(OriginState {
            manners,
            files: Mutex::default(),
            sent: AtomicU64::new(0),
            log: Mutex::default(),
        });
        let router = Router::new().fallback(answer).with_state(Arc::clone(&state));
        runtime.spawn(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
        let origin = Self { url, state, runtime: Some(runtime) };
        for sample in samples {
            origin.put(&sample.path(), sample.bytes.clone());
            origin.put(&sample.units_path(), sample.hashes.to_bytes());
        }
        origin
    }

    pub(crate) fn put(&self, path: &str, bytes: impl Into<Bytes>) {
        self.state.files.lock().insert(path.to_owned(), bytes.into());
    }

    pub(crate) fn manners(&self) -> &Manners {
        &self.state.manners
    }

    /// Requests for a path.
    pub(crate) fn asked(&self, path: &str) -> usize {
        self.state.log.lock().iter().filter(|(asked, _, _)| asked == path).count()
    }

    /// Requests for a path that had a tag.
    pub(crate) fn asked_with_tag(&self, path: &str) -> usize {
        let log = self.state.log.lock();
        log.iter().filter(|(asked, _, tag)| asked == path && *tag).count()
    }

    pub(crate) fn requests(&self) -> usize {
        self.state.log.lock().len()
    }

    /// How often each unit of an artifact was requested.
    pub(crate) fn units_asked(&self, sample: &Sample) -> Vec<u32> {
        let mut counts = vec![0; sample.hashes.count() as usize];
        for (path, range, _) in self.state.log.lock().iter() {
            if *path == sample.path() {
                let (start, end) = range.unwrap_or((0, sample.bytes.len()));
                let end = end.min(sample.bytes.len()).div_ceil(UNIT);
                counts[start / UNIT..end].iter_mut().for_each(|count| *count += 1);
            }
        }
        counts
    }

    pub(crate) fn forget_requests(&self) {
        self.state.log.lock().clear();
    }

    pub(crate) fn stop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.stop();
    }
}

async fn answer(State(state): State<Arc<OriginState>>, request: Request) -> Response {
    let manners = &state.manners;
    let (request, _) = request.into_parts();
    let path = request.uri.path();
    let path = path.strip_prefix("/r").unwrap_or(path).to_owned();
    let text = |name| request.headers.get(name).map(|value| value.to_str().unwrap());
    let range = text(RANGE).map(|range| {
        let (start, last) = range.strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        (start.parse::<usize>().unwrap(), last.parse::<usize>().unwrap() + 1)
    });
    let tag = text(IF_NONE_MATCH);
    state.log.lock().push((path.clone(), range, tag.is_some()));
    let status = |code: u16| Response::builder().status(code);
    if manners.silent.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
    let busy = manners.busy.load(Ordering::Relaxed);
    if busy > 0 {
        return status(503).header(RETRY_AFTER, busy).body(Body::empty()).unwrap();
    }
    let Some(file) = state.files.lock().get(&path).cloned() else {
        return status(404).body(Body::empty()).unwrap();
    };
    if !path.starts_with("/blobs/") {
        let etag = format!("\"{}\"", &blake3::hash(&file).to_hex()[..16]);
        if tag == Some(&etag) {
            return status(304).header(ETAG, etag).body(Body::empty()).unwrap();
        }
        let modified = "Sat, 21 Nov 2026 07:00:00 GMT";
        let response = status(200).header(ETAG, etag).header(LAST_MODIFIED, modified);
        return response.body(Body::from(file)).unwrap();
    }
    if path.ends_with(".units") {
        let mut bytes = file.to_vec();
        bytes[3] ^= u8::from(manners.wrong_hashes.load(Ordering::Relaxed));
        return status(200).body(Body::from(bytes)).unwrap();
    }
    let file = file.slice(..file.len() - manners.shorter);
    let total = file.len();
    let range = range.filter(|_| !manners.ignores_ranges);
    let (start, end) = range.map_or((0, total), |(start, end)| (start, end.min(total)));
    let mut bytes = file[start..end].to_vec();
    for unit in manners.flips.lock().iter() {
        let at = *unit as usize * UNIT + 5;
        if (start..end).contains(&at) {
            bytes[at - start] ^= 1;
        }
    }
    let mut response = status(if range.is_some() { 206 } else { 200 });
    if range.is_some() {
        response = response.header(CONTENT_RANGE, format!("bytes {start}-{}/{total}", end - 1));
    }
    // The last unit shows the length, and is requested first: the gate is for what comes next.
    let gated = end < total;
    response.header(CONTENT_LENGTH, bytes.len()).body(body(&state, gated, bytes.into())).unwrap()
}

fn body(state: &Arc<OriginState>, gated: bool, bytes: Bytes) -> Body {
    let state = Arc::clone(state);
    let pieces = stream::unfold(bytes, move |mut rest| {
        let state = Arc::clone(&state);
        async move {
            if let Some(gate) = state.manners.gate.as_ref().filter(|_| gated) {
                let _pass = gate.acquire().await.unwrap();
            }
            if rest.is_empty() {
                return None;
            }
            let now = rest.split_to((16 << 10).min(rest.len()));
            let sent = state.sent.fetch_add(now.len() as u64, Ordering::Relaxed);
            if state.manners.dies_after.lock().is_some_and(|limit| sent >= limit) {
                return Some((Err(std::io::Error::other("died")), Bytes::new()));
            }
            Some((Ok(now), rest))
        }
    });
    Body::from_stream(pieces.boxed())
}

/// Limits under which faults show within a fraction of a second.
pub(crate) fn quick() -> CacheLimits {
    CacheLimits {
        run_units_max: 16,
        answer_max: Duration::from_millis(800),
        revalidate_max: Duration::from_millis(400),
        small_max: Duration::from_secs(2),
        pauses: Schedule::new(Duration::from_millis(20), Duration::from_millis(200)),
        wrong_bytes_for: Duration::from_millis(300),
        absent_for: Duration::from_millis(300),
        free_bytes_min: 1 << 20,
        ..CacheLimits::default()
    }
}

/// An origin that fails once is not asked again within a test.
pub(crate) fn long_pauses() -> Schedule {
    Schedule::new(Duration::from_secs(120), Duration::from_secs(120))
}

/// A cache on loopback; stops when dropped.
pub(crate) struct Running {
    pub(crate) url: String,
    pub(crate) client: reqwest::Client,
    shutdown: CancellationToken,
    task: Option<AbortOnDropHandle<()>>,
}

pub(crate) fn config(dir: &Path, origins: &[&Origin], limits: CacheLimits) -> CacheConfig {
    CacheConfig {
        listen: "127.0.0.1:0".parse().unwrap(),
        origins: origins.iter().map(|origin| origin.url.clone()).collect(),
        buckets: BucketSettings::default(),
        cache_dir: dir.join("cache"),
        cache_bytes: 64 << 20,
        limits,
    }
}

impl Running {
    pub(crate) async fn start(config: CacheConfig) -> Self {
        let cache = Cache::start(config).await.unwrap();
        let url = format!("http://{}", cache.address());
        let shutdown = CancellationToken::new();
        let stop = shutdown.clone();
        let task = tokio::spawn(async move { cache.run_until(stop).await.unwrap() });
        let client = reqwest::Client::builder().no_proxy().timeout(DEADLINE).build().unwrap();
        Self { url, client, shutdown, task: Some(AbortOnDropHandle::new(task)) }
    }

    pub(crate) async fn stop(mut self) {
        self.shutdown.cancel();
        self.task.take().unwrap().await.unwrap();
    }

    pub(crate) async fn send(&self, path: &str, headers: &[(&str, &str)]) -> reqwest::Response {
        let mut request = self.client.get(format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap()
    }

    /// Status and body; `None` for a truncated body.
    pub(crate) async fn get(&self, path: &str) -> (u16, Option<Bytes>) {
        let answer = self.send(path, &[]).await;
        (answer.status().as_u16(), answer.bytes().await.ok())
    }

    pub(crate) async fn assert_gives(&self, sample: &Sample) {
        let (status, body) = self.get(&sample.path()).await;
        assert_eq!(status, 200);
        assert!(body.unwrap() == sample.bytes, "not the right bytes");
    }

    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let (_, text) = self.get("/metrics").await;
        let text = String::from_utf8(text.unwrap().to_vec()).unwrap();
        let name = format!("cohort_mirror_{name} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&name));
        line.unwrap_or_else(|| panic!("no metric {name}")).parse().unwrap()
    }

    /// Waits until a metric has a value.
    pub(crate) async fn metric_becomes(&self, name: &str, wanted: u64) {
        let begun = Instant::now();
        loop {
            let now = self.metric(name).await;
            if now == wanted {
                return;
            }
            assert!(begun.elapsed() < DEADLINE, "{name} is {now}, not {wanted}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

/// A cache in its own directory.
pub(crate) async fn cache(origins: &[&Origin]) -> (Running, TempDir) {
    cache_with(origins, quick()).await
}

pub(crate) async fn cache_with(origins: &[&Origin], limits: CacheLimits) -> (Running, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    (Running::start(config(dir.path(), origins, limits)).await, dir)
}
