//! The mirrors: which to ask first, and how.
//!
//! The list remembers, for all fetches of this server, how long each mirror took to its first byte
//! and how often it failed in a row, so that a fetch starts where the last one went well.

use std::io;
use std::time::{Duration, Instant};

use cohort_artifact::{blob_path, units_path};
use cohort_core::ids::Digest;
use futures_util::{StreamExt as _, TryStreamExt as _};
use parking_lot::Mutex;
use url::Url;

use crate::peers::ByteStream;

/// Most mirrors; a list beyond that is a mistake.
pub const MIRRORS_MAX: usize = 64;

/// To connect to a mirror, in milliseconds. One that needs longer for two packets is far away.
const CONNECT_MS_MAX: u64 = 5_000;

/// Redirects that are followed: content networks use one, seldom two.
const REDIRECTS_MAX: usize = 5;

/// The mirror in use is left only for one that answers in less than half the time.
const STICKY_FACTOR: u32 = 2;

/// A mirror's failures are forgotten after this long, in milliseconds.
const FORGIVE_MS: u64 = 300_000;

/// Why a list of mirrors is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MirrorError {
    /// Not a URL.
    #[error("mirror `{text}` is not a URL")]
    Url {
        /// The text.
        text: String,
        /// Why.
        #[source]
        source: url::ParseError,
    },
    /// A URL that cannot be a mirror's.
    #[error("mirror `{text}` must be an http or https URL without query and fragment")]
    Scheme {
        /// The text.
        text: String,
    },
    /// Too many.
    #[error("{count} mirrors are more than {MIRRORS_MAX}")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// No HTTP client.
    #[error("no client for mirrors")]
    Client(#[source] reqwest::Error),
}

/// How one mirror has been doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct MirrorRecord {
    /// Smoothed time from the request to the first byte; `None` before its first answer.
    pub first_byte: Option<Duration>,
    /// Failures since it last delivered.
    pub failures: u32,
}

/// The mirrors of the repository, in the order of the configuration.
#[derive(Debug)]
pub struct MirrorList {
    bases: Vec<Url>,
    client: reqwest::Client,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    records: Vec<MirrorRecord>,
    failed_at: Vec<Option<Instant>>,
    current: Option<usize>,
}

impl MirrorList {
    /// Makes the list from base URLs, below which `blobs/…` lie.
    ///
    /// # Errors
    /// When one is no http or https URL, or there are too many.
    pub fn new<S: AsRef<str>>(urls: &[S]) -> Result<Self, MirrorError> {
        // No proxy of the environment, like the fetcher of signed metadata: what a fleet installs
        // must not depend on who started the agent.
        let client = reqwest::Client::builder()
            .connect_timeout(Duration::from_millis(CONNECT_MS_MAX))
            .redirect(reqwest::redirect::Policy::limited(REDIRECTS_MAX))
            .user_agent(concat!("cohort/", env!("CARGO_PKG_VERSION")))
            .no_proxy()
            .build()
            .map_err(MirrorError::Client)?;
        Self::with_client(urls, client)
    }

    /// The same, with a client that was made elsewhere (own authorities, a proxy).
    ///
    /// # Errors
    /// As [`MirrorList::new`].
    pub fn with_client<S: AsRef<str>>(
        urls: &[S],
        client: reqwest::Client,
    ) -> Result<Self, MirrorError> {
        if urls.len() > MIRRORS_MAX {
            return Err(MirrorError::TooMany { count: urls.len() });
        }
        let bases = urls.iter().map(|url| base(url.as_ref())).collect::<Result<Vec<_>, _>>()?;
        let count = bases.len();
        let state = State {
            records: vec![MirrorRecord::default(); count],
            failed_at: vec![None; count],
            current: None,
        };
        Ok(Self { bases, client, state: Mutex::new(state) })
    }

    /// Number of mirrors.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bases.len()
    }

    /// Whether there is no mirror.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bases.is_empty()
    }

    /// A mirror's name for people: its URL without user and password.
    #[must_use]
    pub fn name(&self, index: usize) -> String {
        let Some(mut url) = self.bases.get(index).cloned() else { return format!("#{index}") };
        // Both only fail for URLs that cannot have a user; those were refused.
        let _ = url.set_username("");
        let _ = url.set_password(None);
        url.to_string()
    }

    /// Indices into the configured list, the preferred mirror first.
    #[must_use]
    pub fn ranked(&self) -> Vec<usize> {
        let mut state = self.state.lock();
        let state = &mut *state;
        for (record, failed_at) in state.records.iter_mut().zip(&mut state.failed_at) {
            if failed_at.is_some_and(|at| at.elapsed() >= Duration::from_millis(FORGIVE_MS)) {
                *failed_at = None;
                *record = MirrorRecord::default();
            }
        }
        rank(&state.records, state.current)
    }

    /// Records the time to a mirror's first byte.
    pub fn answered(&self, index: usize, first_byte: Duration) {
        let mut state = self.state.lock();
        let Some(record) = state.records.get_mut(index) else { return };
        record.first_byte = Some(match record.first_byte {
            // The newest weighs a quarter: one slow answer is not a slow mirror.
            Some(before) => (before * 3 + first_byte) / 4,
            None => first_byte,
        });
    }

    /// Records a good unit, for a request that began at `began`. A failure since then stands: what
    /// was in flight says nothing about what comes after.
    pub fn delivered(&self, index: usize, began: Instant) {
        let mut state = self.state.lock();
        if state.failed_at.get(index).copied().flatten().is_some_and(|failed| failed >= began) {
            return;
        }
        if let Some(record) = state.records.get_mut(index) {
            record.failures = 0;
            state.failed_at[index] = None;
            state.current = Some(index);
        }
    }

    /// Records a failure.
    pub fn failed(&self, index: usize) {
        let mut state = self.state.lock();
        if let Some(record) = state.records.get_mut(index) {
            record.failures = record.failures.saturating_add(1);
            state.failed_at[index] = Some(Instant::now());
            if state.current == Some(index) {
                state.current = None;
            }
        }
    }

    /// Asks for an artifact's bytes from `start` on, `length` of them; nothing: for all.
    pub(crate) async fn get_blob(
        &self,
        index: usize,
        digest: &Digest,
        span: Option<(u64, u64)>,
    ) -> io::Result<http::Response<ByteStream>> {
        let mut request = self.get(index, &blob_path(digest))?;
        if let Some((start, length)) = span {
            let range = format!("bytes={start}-{}", start + length - 1);
            request = request.header(http::header::RANGE, range);
        }
        send(request).await
    }

    /// Asks for an artifact's unit hashes.
    pub(crate) async fn get_hashes(
        &self,
        index: usize,
        digest: &Digest,
    ) -> io::Result<http::Response<ByteStream>> {
        send(self.get(index, &units_path(digest))?).await
    }

    fn get(&self, index: usize, path: &str) -> io::Result<reqwest::RequestBuilder> {
        let base = self.bases.get(index).ok_or_else(|| io::Error::other("no such mirror"))?;
        Ok(self.client.get(base.join(path).map_err(io::Error::other)?))
    }
}

/// Orders mirrors: fewest failures first, then the one in use unless another answers in less than
/// half its time, then by time to the first byte (those never asked last), then as configured.
#[must_use]
pub fn rank(records: &[MirrorRecord], current: Option<usize>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..records.len()).collect();
    let time = |index: usize| records[index].first_byte.unwrap_or(Duration::MAX);
    order.sort_by_key(|&index| (records[index].failures, time(index), index));
    let Some(current) = current.filter(|index| *index < records.len()) else { return order };
    let best = order[0];
    let stays = records[current].failures <= records[best].failures
        && time(current) <= time(best).saturating_mul(STICKY_FACTOR);
    if stays {
        order.retain(|index| *index != current);
        order.insert(0, current);
    }
    order
}

async fn send(request: reqwest::RequestBuilder) -> io::Result<http::Response<ByteStream>> {
    let answer = request.send().await.map_err(failed)?;
    let mut response = http::Response::builder().status(answer.status());
    if let Some(headers) = response.headers_mut() {
        *headers = answer.headers().clone();
    }
    let body = answer.bytes_stream().map_err(failed).boxed();
    response.body(body).map_err(io::Error::other)
}

/// Without the URL, which may hold a password.
fn failed(error: reqwest::Error) -> io::Error {
    io::Error::other(error.without_url())
}

fn base(text: &str) -> Result<Url, MirrorError> {
    let failed = |source| MirrorError::Url { text: text.to_owned(), source };
    let mut url = Url::parse(text).map_err(failed)?;
    let plain = matches!(url.scheme(), "http" | "https") && url.has_host();
    if !plain || url.query().is_some() || url.fragment().is_some() {
        return Err(MirrorError::Scheme { text: text.to_owned() });
    }
    if !url.path().ends_with('/') {
        let path = format!("{}/", url.path());
        url.set_path(&path);
    }
    Ok(url)
}
