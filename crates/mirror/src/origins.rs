//! The origins: which to ask, when to leave one alone, and reading what it answers.

use std::error::Error as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::StreamExt as _;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, IF_NONE_MATCH, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use rand::TryRngCore as _;
use tokio::sync::Semaphore;
use tokio::time::{timeout, timeout_at};
use url::Url;

use crate::MirrorError;
use crate::bucket::{Bucket, BucketSettings, Found};
use crate::config::CacheLimits;
use crate::metrics::{Metrics, add};
use crate::recent::Recent;

/// Redirects that are followed: content networks use one, seldom two.
const REDIRECTS_MAX: usize = 5;

/// `Retry-After` without a number that can be read.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// Doublings of a pause that are counted; the longest pause comes first.
const DOUBLINGS_MAX: u32 = 16;

/// Why one origin did not give what it was asked for.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum OriginError {
    #[error("has not got it")]
    Absent,
    #[error("is busy for {} ms", .0.as_millis())]
    Busy(Duration),
    #[error("{0}")]
    Failed(String),
    #[error("sent wrong bytes: {0}")]
    Wrong(String),
}

/// Why nobody gave it.
#[derive(Debug, Clone)]
pub(crate) enum Refused {
    /// There is no such file.
    Absent,
    /// Nobody is to be asked before this has passed.
    Later(Duration),
    /// All who were asked failed.
    Failed(String),
}

/// All origins, in the order of the configuration.
pub(crate) struct Origins {
    client: reqwest::Client,
    list: Vec<Origin>,
    limits: Arc<CacheLimits>,
    metrics: Arc<Metrics>,
    /// Who sent wrong bytes of what, lately.
    liars: Recent,
    /// Requests for artifacts,
    pub(crate) bulk: Semaphore,
    /// and for small files, which must not queue behind them.
    pub(crate) small: Semaphore,
}

struct Origin {
    place: Place,
    name: String,
    health: Mutex<Health>,
}

/// Where an origin's files lie.
enum Place {
    /// Below a URL.
    Web(Url),
    /// In an object store.
    Bucket(Bucket),
}

#[derive(Debug, Default)]
struct Health {
    failures: u32,
    failed_at: Option<Instant>,
    not_before: Option<Instant>,
}

impl Origins {
    pub(crate) fn new(
        urls: &[String],
        settings: &BucketSettings,
        limits: Arc<CacheLimits>,
        metrics: Arc<Metrics>,
    ) -> Result<Self, MirrorError> {
        // No proxy of the environment: where bytes come from is said in the configuration.
        let client = reqwest::Client::builder()
            .connect_timeout(Duration::from_millis(limits.connect_ms_max))
            .redirect(reqwest::redirect::Policy::limited(REDIRECTS_MAX))
            .user_agent(concat!("cohort-mirror/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .build()
            .map_err(MirrorError::Client)?;
        let list = urls.iter().map(|url| Origin::new(url, settings, &client));
        let list = list.collect::<Result<_, _>>()?;
        let bulk = Semaphore::new(limits.bulk_requests_max);
        let small = Semaphore::new(limits.small_requests_max);
        let liars = Recent::new(Duration::from_millis(limits.wrong_bytes_ms));
        Ok(Self { client, list, limits, metrics, liars, bulk, small })
    }

    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.list.len()).unwrap_or(u32::MAX)
    }

    /// An origin's name for people and records: its URL without user and password.
    pub(crate) fn name(&self, origin: usize) -> &str {
        &self.list[origin].name
    }

    /// The origins that may be asked for something now, one after the other.
    pub(crate) fn turn<'a>(&'a self, what: &'a str) -> Turn<'a> {
        Turn {
            origins: self,
            what,
            next: 0,
            asked: None,
            absent: false,
            failure: None,
            earliest: None,
        }
    }

    /// Asks for a file, or its bytes from the first to the last of `range`. The answer's status is
    /// 200, 206 or 304.
    pub(crate) async fn get(
        &self,
        origin: usize,
        path: &str,
        range: Option<(u64, u64)>,
        headers: HeaderMap,
    ) -> Result<Body<'_>, OriginError> {
        add(&self.metrics.origin_requests, 1);
        let ms = self.limits.first_byte_ms_max;
        let asking = async {
            match &self.list[origin].place {
                Place::Web(base) => self.get_from_web(base, path, range, headers).await,
                Place::Bucket(bucket) => {
                    let tag = headers.get(IF_NONE_MATCH).and_then(|tag| tag.to_str().ok());
                    bucket.get(path, range, tag).await
                }
            }
        };
        let found = timeout(self.limits.first_byte(), asking)
            .await
            .map_err(|_| OriginError::Failed(format!("no answer within {ms} ms")))??;
        Ok(Body { origins: self, found, rest: Bytes::new() })
    }

    async fn get_from_web(
        &self,
        base: &Url,
        path: &str,
        range: Option<(u64, u64)>,
        mut headers: HeaderMap,
    ) -> Result<Found, OriginError> {
        let url = base.join(path).map_err(|error| OriginError::Failed(error.to_string()))?;
        if let Some((first, last)) = range {
            let range = format!("bytes={first}-{last}");
            headers.insert(http::header::RANGE, range.parse().expect("numbers are visible ASCII"));
        }
        let answer = self.client.get(url).headers(headers).send().await.map_err(flat)?;
        match answer.status() {
            status @ (StatusCode::OK | StatusCode::PARTIAL_CONTENT | StatusCode::NOT_MODIFIED) => {
                let headers = answer.headers().clone();
                let pieces = answer.bytes_stream().map(|piece| piece.map_err(flat)).boxed();
                Ok(Found { status, headers, pieces })
            }
            // Object stores answer 403 for a missing file when listing is not allowed.
            StatusCode::NOT_FOUND | StatusCode::GONE | StatusCode::FORBIDDEN => {
                Err(OriginError::Absent)
            }
            StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
                Err(OriginError::Busy(retry_after(answer.headers())))
            }
            status => Err(OriginError::Failed(format!("answered with status {status}"))),
        }
    }

    /// Asks for the bytes of a file from `first` to `last`, both included. An answer that ends
    /// sooner, at the file's end, is right as well.
    pub(crate) async fn get_range(
        &self,
        origin: usize,
        path: &str,
        (first, last): (u64, u64),
    ) -> Result<Body<'_>, OriginError> {
        let body = self.get(origin, path, Some((first, last)), HeaderMap::new()).await?;
        let begins = match body.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = body.header(CONTENT_RANGE);
                range.is_some_and(|range| range.starts_with(&format!("bytes {first}-")))
            }
            // All of it, from the start: what is wanted is its beginning.
            _ => first == 0,
        };
        if begins {
            Ok(body)
        } else {
            Err(OriginError::Failed("ignores ranges, or answers another one".to_owned()))
        }
    }

    /// An origin delivered something that is right.
    pub(crate) fn delivered(&self, origin: usize, asked: Instant) {
        let mut health = self.list[origin].health();
        // What was on its way before a failure says nothing about what comes after.
        if health.failed_at.is_none_or(|failed| failed < asked) {
            *health = Health::default();
        }
    }

    /// An origin failed, for a request that was sent at `asked`.
    pub(crate) fn failed(&self, origin: usize, asked: Instant, error: &OriginError) {
        let (limits, name) = (&self.limits, self.name(origin));
        match error {
            // An answer, and a healthy one.
            OriginError::Absent => return,
            OriginError::Busy(after) => {
                let after = (*after).min(Duration::from_millis(limits.retry_after_ms_max));
                self.list[origin].leave_alone(after);
                return;
            }
            OriginError::Wrong(_) => add(&self.metrics.wrong, 1),
            OriginError::Failed(_) => {}
        }
        add(&self.metrics.origin_failures, 1);
        let mut health = self.list[origin].health();
        // Requests that were under way together fail together: that is one failure.
        if health.failed_at.is_some_and(|failed| failed >= asked) {
            return;
        }
        health.failures = health.failures.saturating_add(1);
        health.failed_at = Some(Instant::now());
        let doublings = (health.failures - 1).min(DOUBLINGS_MAX);
        let pause = Duration::from_millis(limits.backoff_ms_min).saturating_mul(1 << doublings);
        let random = rand::rngs::OsRng.try_next_u32().unwrap_or_default();
        let spread = f64::from(random) / f64::from(u32::MAX);
        // Mirrors that lost their origin together do not come back together.
        let pause = pause.min(limits.backoff_max()).mul_f64(0.75 + spread / 2.0);
        health.not_before = health.not_before.max(Some(Instant::now() + pause));
        let ms = pause.as_millis();
        tracing::warn!(origin = name, %error, pause_ms = ms, "origin failed");
    }
}

impl Origin {
    fn new(
        text: &str,
        settings: &BucketSettings,
        client: &reqwest::Client,
    ) -> Result<Self, MirrorError> {
        if Bucket::is_url(text) {
            let bucket = Bucket::open_to_read(text, settings, client.clone());
            let bucket = bucket.map_err(MirrorError::Bucket)?;
            let name = bucket.name().to_owned();
            return Ok(Self { place: Place::Bucket(bucket), name, health: Mutex::default() });
        }
        let refused = |why: &str| MirrorError::Config { reason: format!("origin `{text}` {why}") };
        let mut base = Url::parse(text).map_err(|error| refused(&format!("is no URL: {error}")))?;
        let plain = matches!(base.scheme(), "http" | "https") && base.has_host();
        if !plain || base.query().is_some() || base.fragment().is_some() {
            return Err(refused(
                "must be an http or https URL without query and fragment, or a bucket such as \
                 s3://BUCKET/PREFIX",
            ));
        }
        if !base.path().ends_with('/') {
            let path = format!("{}/", base.path());
            base.set_path(&path);
        }
        let mut shown = base.clone();
        // Both only fail for URLs that cannot have a user.
        let _ = shown.set_username("");
        let _ = shown.set_password(None);
        let name = shown.to_string();
        Ok(Self { place: Place::Web(base), name, health: Mutex::default() })
    }

    fn leave_alone(&self, pause: Duration) {
        let mut health = self.health();
        health.failed_at = Some(Instant::now());
        health.not_before = health.not_before.max(Some(Instant::now() + pause));
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        // Plain numbers: whole after every instruction.
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One question that is put to one origin after the other, until one gives what is wanted.
pub(crate) struct Turn<'a> {
    origins: &'a Origins,
    what: &'a str,
    next: usize,
    asked: Option<Instant>,
    absent: bool,
    failure: Option<String>,
    earliest: Option<Instant>,
}

impl Turn<'_> {
    /// The next one to ask.
    pub(crate) fn next(&mut self) -> Option<usize> {
        while self.next < self.origins.list.len() {
            let origin = self.next;
            self.next += 1;
            if self.origins.liars.knows(&liar(origin, self.what)) {
                let name = self.origins.name(origin);
                self.failure = Some(format!("{name} has sent wrong bytes of it"));
                continue;
            }
            let not_before = self.origins.list[origin].health().not_before;
            match not_before.filter(|at| *at > Instant::now()) {
                Some(at) => {
                    self.earliest = Some(self.earliest.map_or(at, |earliest| earliest.min(at)));
                }
                None => {
                    self.asked = Some(Instant::now());
                    return Some(origin);
                }
            }
        }
        None
    }

    /// It gave what is wanted.
    pub(crate) fn delivered(&self, origin: usize) {
        if let Some(asked) = self.asked {
            self.origins.delivered(origin, asked);
        }
    }

    /// It did not.
    pub(crate) fn failed(&mut self, origin: usize, error: &OriginError) {
        let asked = self.asked.unwrap_or_else(Instant::now);
        self.origins.failed(origin, asked, error);
        match error {
            OriginError::Absent => self.absent = true,
            OriginError::Busy(_) => {
                let at = self.origins.list[origin].health().not_before;
                self.earliest = self.earliest.min(at).or(at);
            }
            OriginError::Wrong(_) => {
                // Of this file only: one that is damaged there must not take the others away.
                self.origins.liars.note(&liar(origin, self.what));
                self.failure = Some(format!("{} {error}", self.origins.name(origin)));
            }
            OriginError::Failed(_) => {
                self.failure = Some(format!("{} {error}", self.origins.name(origin)));
            }
        }
    }

    /// What to say when nobody gave it. *There is none* of one outweighs the silence of others.
    pub(crate) fn refused(self) -> Refused {
        if self.absent {
            return Refused::Absent;
        }
        match (self.failure, self.earliest) {
            (Some(failure), _) => Refused::Failed(failure),
            (None, at) => {
                let after = at.map_or(RETRY_AFTER_DEFAULT, |at| at - Instant::now().min(at));
                Refused::Later(after)
            }
        }
    }
}

/// What an origin answers, read in pieces of a known length.
pub(crate) struct Body<'a> {
    origins: &'a Origins,
    found: Found,
    rest: Bytes,
}

impl Body<'_> {
    pub(crate) fn status(&self) -> StatusCode {
        self.found.status
    }

    pub(crate) fn header(&self, name: http::HeaderName) -> Option<String> {
        self.found.headers.get(name)?.to_str().ok().map(str::to_owned)
    }

    /// All that is left, at most `bytes_max`.
    pub(crate) async fn rest(
        &mut self,
        bytes_max: u64,
        time: Duration,
    ) -> Result<Bytes, OriginError> {
        let too_long = || OriginError::Failed(format!("answered more than {bytes_max} bytes"));
        let announced = self.header(CONTENT_LENGTH).and_then(|length| length.parse::<u64>().ok());
        if announced.is_some_and(|length| length > bytes_max) {
            return Err(too_long());
        }
        // One byte more shows that there is more.
        let wanted = usize::try_from(bytes_max + 1).unwrap_or(usize::MAX);
        let bytes = self.at_most(wanted, time).await?;
        if bytes.len() < wanted { Ok(bytes) } else { Err(too_long()) }
    }

    /// Exactly this much, or less at the end.
    pub(crate) async fn at_most(
        &mut self,
        length: usize,
        time: Duration,
    ) -> Result<Bytes, OriginError> {
        let deadline = tokio::time::Instant::now() + time;
        let mut taken = BytesMut::new();
        while taken.len() < length {
            if self.rest.is_empty() {
                let slow =
                    |_| OriginError::Failed(format!("too slow: over {} ms", time.as_millis()));
                match timeout_at(deadline, self.piece()).await.map_err(slow)?? {
                    Some(piece) => self.rest = piece,
                    None => break,
                }
            }
            let now = self.rest.len().min(length - taken.len());
            if taken.is_empty() && now == length {
                // The common small file in one piece: no copy.
                return Ok(self.rest.split_to(now));
            }
            taken.extend_from_slice(&self.rest[..now]);
            self.rest.advance(now);
        }
        Ok(taken.freeze())
    }

    async fn piece(&mut self) -> Result<Option<Bytes>, OriginError> {
        let ms = self.origins.limits.idle_ms_max;
        let piece = timeout(Duration::from_millis(ms), self.found.pieces.next())
            .await
            .map_err(|_| OriginError::Failed(format!("no byte within {ms} ms")))?
            .transpose()?;
        if let Some(piece) = &piece {
            add(&self.origins.metrics.origin_bytes, piece.len() as u64);
        }
        Ok(piece)
    }
}

fn liar(origin: usize, what: &str) -> String {
    format!("{origin} {what}")
}

/// An error of the client in one line, without the URL, which may hold a password.
fn flat(error: reqwest::Error) -> OriginError {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        text = format!("{text}: {inner}");
        cause = inner.source();
    }
    OriginError::Failed(text)
}

/// How long the sender of an answer wants to be left alone.
pub(crate) fn retry_after(headers: &HeaderMap) -> Duration {
    let value = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let seconds = value.and_then(|value| value.trim().parse().ok());
    seconds.map_or(RETRY_AFTER_DEFAULT, Duration::from_secs)
}
