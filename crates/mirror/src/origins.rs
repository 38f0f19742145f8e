//! The origins: which to ask next, and how long to pause one.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cohort_artifact::client::{Answer, ClientLimits, FetchError, Mirror, MirrorClient, Wanted};
use parking_lot::Mutex;
use rand::TryRngCore as _;
use tokio::sync::Semaphore;

use crate::MirrorError;
use crate::bucket::{Bucket, BucketError, BucketSettings};
use crate::config::CacheLimits;
use crate::metrics::Metrics;

/// Longest time to connect to an origin.
const CONNECT_MAX: Duration = Duration::from_secs(3);

/// Concurrent requests for artifacts: enough to fill a long-distance downlink; more would only
/// share it.
const BULK_MAX: usize = 8;

/// Concurrent requests for small files.
const SMALL_MAX: usize = 16;

/// Longest `Retry-After` that is honoured in full.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);

/// The wait to suggest if all origins are paused but none says for how long.
const LATER_DEFAULT: Duration = Duration::from_secs(1);

/// Most files per origin whose wrong bytes are remembered; beyond that, the origin is asked for
/// them again.
const WRONG_MAX: usize = 4096;

/// Why a request to one origin failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OriginError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("cannot sign the request")]
    Sign(#[from] BucketError),
    #[error("did not deliver within {} ms", .0.as_millis())]
    Late(Duration),
    #[error("ended within unit {0}")]
    CutShort(u32),
    #[error("sent wrong bytes")]
    Wrong(#[source] cohort_base::Cause),
}

impl OriginError {
    pub(crate) fn wrong(cause: impl Into<cohort_base::Cause>) -> Self {
        Self::Wrong(cause.into())
    }
}

/// Why no origin delivered it.
#[derive(Debug, Clone)]
pub(crate) enum Refused {
    /// No origin has such a file.
    Absent,
    /// No origin may be asked before this time has passed.
    Later(Duration),
    /// All origins asked have failed; human-readable, for logs and the reader's error.
    Failed(String),
}

/// All origins, in configured order.
pub(crate) struct Origins {
    client: MirrorClient,
    list: Vec<Origin>,
    limits: Arc<CacheLimits>,
    metrics: Arc<Metrics>,
    pub(crate) bulk: Semaphore,
    /// Requests for small files, which must not queue behind artifacts.
    small: Semaphore,
}

struct Origin {
    place: Place,
    name: String,
    health: Mutex<Health>,
}

enum Place {
    Mirror(Mirror),
    /// Private: each request is signed.
    Bucket(Bucket),
}

#[derive(Debug, Default)]
struct Health {
    /// Consecutive failures; reset by a delivery.
    failures: u32,
    failed_at: Option<Instant>,
    not_before: Option<Instant>,
    /// Files whose bytes it sent wrong, and when.
    wrong: HashMap<String, Instant>,
}

impl Origins {
    pub(crate) fn new(
        urls: &[String],
        settings: &BucketSettings,
        limits: Arc<CacheLimits>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, MirrorError> {
        let client = MirrorClient::new(ClientLimits {
            connect: CONNECT_MAX,
            first_byte: limits.answer_max,
            idle: limits.answer_max,
            file: limits.small_max,
        });
        let client = client.map_err(MirrorError::Client)?;
        let list = urls.iter().map(|url| Origin::new(url, settings));
        let list = list.collect::<Result<_, _>>()?;
        let (bulk, small) = (Semaphore::new(BULK_MAX), Semaphore::new(SMALL_MAX));
        Ok(Self { client, list, limits, metrics, bulk, small })
    }

    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.list.len()).unwrap_or(u32::MAX)
    }

    /// An origin's name for logs and records, without secrets.
    pub(crate) fn name(&self, origin: usize) -> &str {
        &self.list[origin].name
    }

    /// The origins that may be asked for a file now, one after another.
    pub(crate) fn turn<'a>(&'a self, file: &'a str) -> Turn<'a> {
        Turn { origins: self, file, next: 0, absent: false, failure: None, earliest: None }
    }

    /// Sends a request to one origin.
    pub(crate) async fn get(
        &self,
        origin: usize,
        path: &str,
        wanted: &Wanted<'_>,
    ) -> Result<Answer, OriginError> {
        self.metrics.origin_requests.inc();
        match &self.list[origin].place {
            Place::Mirror(mirror) => Ok(self.client.get(mirror, path, wanted).await?),
            Place::Bucket(bucket) => {
                let limit = self.limits.answer_max;
                let signing = tokio::time::timeout(limit, bucket.signed_url(path));
                let url = signing.await.map_err(|_| OriginError::Late(limit))??;
                Ok(self.client.get_url(url, wanted).await?)
            }
        }
    }

    /// What the first origin that has it delivers, each asked once. For small files.
    pub(crate) async fn first<T, F>(
        &self,
        file: &str,
        ask: impl Fn(usize) -> F,
    ) -> Result<T, Refused>
    where
        F: Future<Output = Result<T, OriginError>>,
    {
        // Fails only if the semaphore is closed, which never happens.
        let _permit = self.small.acquire().await.map_err(|_| Refused::Absent)?;
        let mut turn = self.turn(file);
        while let Some(origin) = turn.next() {
            let asked = Instant::now();
            match ask(origin).await {
                Ok(delivered) => {
                    self.delivered(origin, asked);
                    return Ok(delivered);
                }
                Err(error) => turn.failed(origin, asked, &error),
            }
        }
        Err(turn.refused())
    }

    /// Records that an origin delivered the response to a request sent at `asked`.
    pub(crate) fn delivered(&self, origin: usize, asked: Instant) {
        let mut health = self.list[origin].health.lock();
        // A request sent before a failure says nothing about what comes after.
        if health.failed_at.is_none_or(|failed| failed < asked) {
            let wrong = std::mem::take(&mut health.wrong);
            *health = Health { wrong, ..Health::default() };
        }
    }

    /// Records the failure of a request that was sent at `asked`.
    fn failed(&self, origin: usize, file: &str, asked: Instant, error: &OriginError) {
        let (limits, now) = (&self.limits, Instant::now());
        let mut health = self.list[origin].health.lock();
        match error {
            // A response, and a healthy one.
            OriginError::Fetch(FetchError::Absent) => return,
            OriginError::Fetch(FetchError::Busy { retry_after }) => {
                health.failed_at = Some(now);
                let until = now + (*retry_after).min(RETRY_AFTER_MAX);
                health.not_before = health.not_before.max(Some(until));
                return;
            }
            OriginError::Wrong(_) => {
                self.metrics.wrong.inc();
                health.wrong.retain(|_, at| at.elapsed() < limits.wrong_bytes_for);
                // This file only: one damaged file must not make the origin's others unavailable.
                if health.wrong.len() < WRONG_MAX {
                    health.wrong.insert(file.to_owned(), now);
                }
            }
            _ => {}
        }
        self.metrics.origin_failures.inc();
        // Requests in flight at the same time fail together: that is one failure.
        if health.failed_at.is_some_and(|failed| failed >= asked) {
            return;
        }
        health.failures = health.failures.saturating_add(1);
        health.failed_at = Some(now);
        let random = rand::rngs::OsRng.try_next_u64().unwrap_or_default();
        let pause = limits.pauses.pause(health.failures, random);
        health.not_before = health.not_before.max(Some(now + pause));
        drop(health);
        let (origin, error) = (self.name(origin), cohort_base::chain(error));
        tracing::warn!(origin, error, pause_ms = pause.as_millis(), "origin failed");
    }
}

impl Origin {
    fn new(text: &str, settings: &BucketSettings) -> Result<Self, MirrorError> {
        let place = if Bucket::is_cloud_url(text) {
            Place::Bucket(Bucket::open(text, settings).map_err(MirrorError::Bucket)?)
        } else {
            Place::Mirror(text.parse().map_err(MirrorError::Origin)?)
        };
        let name = match &place {
            Place::Mirror(mirror) => mirror.to_string(),
            Place::Bucket(bucket) => bucket.name().to_owned(),
        };
        Ok(Self { place, name, health: Mutex::default() })
    }
}

/// One request sent to one origin after another, until one delivers.
pub(crate) struct Turn<'a> {
    origins: &'a Origins,
    file: &'a str,
    next: usize,
    absent: bool,
    failure: Option<String>,
    /// When the first paused origin may be asked again.
    earliest: Option<Instant>,
}

impl Turn<'_> {
    /// The next origin to ask.
    pub(crate) fn next(&mut self) -> Option<usize> {
        let valid = self.origins.limits.wrong_bytes_for;
        while let Some(origin) = self.origins.list.get(self.next) {
            self.next += 1;
            let health = origin.health.lock();
            if health.wrong.get(self.file).is_some_and(|at| at.elapsed() < valid) {
                self.failure = Some(format!("{} sent wrong bytes of it", origin.name));
                continue;
            }
            match health.not_before.filter(|at| *at > Instant::now()) {
                Some(at) => self.left_alone_until(at),
                None => return Some(self.next - 1),
            }
        }
        None
    }

    /// Records that the request sent to it at `asked` failed.
    pub(crate) fn failed(&mut self, origin: usize, asked: Instant, error: &OriginError) {
        self.origins.failed(origin, self.file, asked, error);
        match error {
            OriginError::Fetch(FetchError::Absent) => self.absent = true,
            OriginError::Fetch(FetchError::Busy { .. }) => {
                let not_before = self.origins.list[origin].health.lock().not_before;
                self.left_alone_until(not_before.unwrap_or_else(Instant::now));
            }
            error => {
                let (name, error) = (self.origins.name(origin), cohort_base::chain(error));
                self.failure = Some(format!("{name}: {error}"));
            }
        }
    }

    fn left_alone_until(&mut self, at: Instant) {
        self.earliest = Some(self.earliest.map_or(at, |earliest| earliest.min(at)));
    }

    /// The error if none delivered. One origin's *there is none* outweighs the silence of others.
    pub(crate) fn refused(self) -> Refused {
        match (self.absent, self.failure, self.earliest) {
            (true, ..) => Refused::Absent,
            (false, Some(failure), _) => Refused::Failed(failure),
            (false, None, Some(at)) => Refused::Later(at.saturating_duration_since(Instant::now())),
            (false, None, None) => Refused::Later(LATER_DEFAULT),
        }
    }
}
