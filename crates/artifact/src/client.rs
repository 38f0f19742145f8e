//! The one client of mirrors: every read from a mirror goes through here.
//!
//! **What it is.** `GET` of a file or a part of one, from an HTTP server or a directory, with
//! uniform treatment of redirects, missing files, queries, time limits and errors with their cause.
//!
//! **What it must never know.** What a file means. Nothing that comes from here is verified.
//!
//! - Redirects are followed, at most five, to any host, but never from https to http; user,
//!   password and query of the mirror are not sent to the host that it redirects to.
//! - 404 and 410 mean [`FetchError::Absent`]; 403 too, because object stores send that to clients
//!   without permission to list. An empty file is a file.
//! - The query of a mirror's address is sent with every request, and never shown.
//! - Environment proxies are not used: what a fleet installs must not depend on who started the
//!   agent.

mod address;
mod answer;
mod error;

use std::io::SeekFrom;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use http::header::{
    CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH,
    LAST_MODIFIED, RANGE, RETRY_AFTER,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use reqwest::redirect::{Action, Attempt, Policy};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _, AsyncWriteExt as _};
use tokio::time::timeout;
use tokio_util::io::ReaderStream;
use url::Url;

pub use address::{AddressError, Mirror, without_secrets};
pub use answer::{Answer, Content};
pub use error::FetchError;

use error::RedirectError;

/// Most redirects. Content networks use one, rarely two.
const REDIRECTS_MAX: usize = 5;

/// The pause if `Retry-After` is missing or a date.
const RETRY_AFTER_DEFAULT: Duration = Duration::from_secs(1);

/// How much of an object store's error response is read to find its code, in bytes.
const REFUSAL_BYTES_MAX: u64 = 4 << 10;

/// Longest text from a server to show, in characters.
const SHOWN_CHARS_MAX: usize = 80;

/// The requested part of a file, and which copy of it the caller has.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// First and last byte; `None`: the whole file.
    pub range: Option<(u64, u64)>,
    /// Tag of the caller's copy.
    pub etag: Option<&'a str>,
    /// Modification time of the caller's copy, as the mirror wrote it; sent only without a tag.
    pub modified: Option<&'a str>,
}

/// Time limits for a mirror.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientLimits {
    pub connect: Duration,
    /// From the request to the response head, including redirects.
    pub first_byte: Duration,
    /// Between two pieces of the body.
    pub idle: Duration,
    /// For the whole of a small file ([`MirrorClient::fetch`]).
    pub file: Duration,
}

impl Default for ClientLimits {
    /// For signed metadata: a connection across the world takes under a second, a file is at most
    /// 16 MiB, and callers have other mirrors.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            first_byte: Duration::from_secs(10),
            idle: Duration::from_secs(10),
            file: Duration::from_secs(60),
        }
    }
}

/// Sends requests to mirrors. Clones share connections.
#[derive(Debug, Clone)]
pub struct MirrorClient {
    http: reqwest::Client,
    /// With a certificate of the fleet.
    hub: Option<reqwest::Client>,
    limits: ClientLimits,
}

fn builder(limits: ClientLimits) -> reqwest::ClientBuilder {
    reqwest::Client::builder()
        .connect_timeout(limits.connect)
        .redirect(Policy::custom(follow))
        .referer(false)
        .user_agent(concat!("cohort/", env!("CARGO_PKG_VERSION")))
        .no_proxy()
}

impl MirrorClient {
    /// A client with its own connections.
    ///
    /// # Errors
    /// If the system's certificates cannot be read.
    pub fn new(limits: ClientLimits) -> Result<Self, FetchError> {
        let http = builder(limits).build().map_err(FetchError::connection)?;
        Ok(Self { http, hub: None, limits })
    }

    /// The same, which can read from hubs as well ([`Mirror::Hub`]), with this configuration.
    ///
    /// # Errors
    /// If the library does not take it.
    pub fn with_certificate(self, tls: rustls::ClientConfig) -> Result<Self, FetchError> {
        let hub = builder(self.limits).https_only(true).redirect(Policy::none());
        // Each request shakes hands: that is when a revoked hub is refused.
        let hub = hub.pool_max_idle_per_host(0);
        let hub = hub.tls_backend_preconfigured(tls).build().map_err(FetchError::connection)?;
        Ok(Self { hub: Some(hub), ..self })
    }

    /// Requests a file or a part of one; `path` is relative to the repository, such as
    /// `metadata/timestamp.json`. Returns once the response head has arrived.
    ///
    /// # Errors
    /// If the mirror has no such file, refuses, sends other bytes than requested, or is unreachable
    /// for too long.
    pub async fn get(
        &self,
        mirror: &Mirror,
        path: &str,
        wanted: &Wanted<'_>,
    ) -> Result<Answer, FetchError> {
        let url_of = |base| {
            let wrong = |source| FetchError::Path { path: path.to_owned(), source };
            Mirror::url_of(base, path).map_err(wrong)
        };
        match mirror {
            Mirror::Http(base) => self.get_url(url_of(base)?, wanted).await,
            Mirror::Hub(base) => {
                let client = self.hub.as_ref().ok_or(FetchError::NoCertificate)?;
                self.request(client, url_of(base)?, wanted).await
            }
            Mirror::Folder(base) => {
                self.in_time(get_file(base.join(path), wanted.range, self.limits.idle)).await
            }
        }
    }

    /// The same with the full URL of a file, such as one signed for a private bucket.
    ///
    /// # Errors
    /// As [`MirrorClient::get`].
    pub async fn get_url(&self, url: Url, wanted: &Wanted<'_>) -> Result<Answer, FetchError> {
        self.request(&self.http, url, wanted).await
    }

    async fn request(
        &self,
        client: &reqwest::Client,
        url: Url,
        wanted: &Wanted<'_>,
    ) -> Result<Answer, FetchError> {
        let mut request = client.get(url);
        if let Some((first, last)) = wanted.range {
            request = request.header(RANGE, format!("bytes={first}-{last}"));
        }
        // The modification time only without a tag: it counts in seconds, and some stores honour it
        // although a different tag comes with it. A replacement within a second would stay hidden.
        let validator = match wanted {
            Wanted { etag: Some(etag), .. } => Some((IF_NONE_MATCH, *etag)),
            Wanted { modified: Some(modified), .. } => Some((IF_MODIFIED_SINCE, *modified)),
            Wanted { .. } => None,
        };
        if let Some((name, text)) = validator
            && let Ok(value) = HeaderValue::from_str(text)
        {
            request = request.header(name, value);
        }
        let asking = async {
            let response = request.send().await.map_err(FetchError::connection)?;
            read_head(response, wanted, self.limits.idle).await
        };
        self.in_time(asking).await
    }

    /// Fetches a whole small file.
    ///
    /// # Errors
    /// As [`MirrorClient::get`], and if the file is longer than `bytes_max` or takes too long.
    pub async fn fetch(
        &self,
        mirror: &Mirror,
        path: &str,
        bytes_max: u64,
    ) -> Result<Bytes, FetchError> {
        let limit = self.limits.file;
        let fetching = async {
            self.get(mirror, path, &Wanted::default()).await?.rest(bytes_max, limit).await
        };
        let late = FetchError::TimedOut { what: "end of the file", limit };
        timeout(limit, fetching).await.unwrap_or(Err(late))
    }

    /// Fetches a large file of at most `bytes_max` bytes into `into`. Only silence is limited, not
    /// the total time.
    ///
    /// # Errors
    /// As [`MirrorClient::get`], if the file is longer, or if `into` cannot be written.
    pub async fn fetch_to(
        &self,
        mirror: &Mirror,
        path: &str,
        bytes_max: u64,
        into: &mut File,
    ) -> Result<(), FetchError> {
        let mut answer = self.get(mirror, path, &Wanted::default()).await?;
        let mut left = bytes_max;
        while let Some(piece) = answer.piece().await? {
            let too_large = FetchError::TooLarge { limit_bytes: bytes_max };
            left = left.checked_sub(piece.len() as u64).ok_or(too_large)?;
            into.write_all(&piece).await.map_err(FetchError::disk)?;
        }
        into.flush().await.map_err(FetchError::disk)
    }

    async fn in_time(
        &self,
        asking: impl Future<Output = Result<Answer, FetchError>>,
    ) -> Result<Answer, FetchError> {
        let limit = self.limits.first_byte;
        let late = FetchError::TimedOut { what: "answer", limit };
        timeout(limit, asking).await.unwrap_or(Err(late))
    }
}

fn follow(attempt: Attempt<'_>) -> Action {
    let before = attempt.previous();
    let secure = before.last().is_some_and(|url| url.scheme() == "https");
    if before.contains(attempt.url()) {
        attempt.error(RedirectError::Circle)
    } else if before.len() > REDIRECTS_MAX {
        attempt.error(RedirectError::TooMany(REDIRECTS_MAX))
    } else if secure && attempt.url().scheme() != "https" {
        let scheme = attempt.url().scheme().to_owned();
        attempt.error(RedirectError::Downgrade(scheme))
    } else {
        attempt.follow()
    }
}

async fn read_head(
    response: reqwest::Response,
    wanted: &Wanted<'_>,
    idle: Duration,
) -> Result<Answer, FetchError> {
    let (status, headers) = (response.status(), response.headers().clone());
    let pieces = response.bytes_stream().map(|piece| piece.map_err(FetchError::connection));
    let mut answer = Answer {
        content: Content::Whole,
        length: text(&headers, CONTENT_LENGTH).and_then(|length| length.parse().ok()),
        etag: text(&headers, ETAG).map(str::to_owned),
        modified: text(&headers, LAST_MODIFIED).map(str::to_owned),
        pieces: pieces.boxed(),
        rest: Bytes::new(),
        idle,
    };
    answer.content = match status {
        StatusCode::OK if wanted.range.is_none_or(|(first, _)| first == 0) => Content::Whole,
        StatusCode::OK => return Err(FetchError::RangeIgnored),
        StatusCode::PARTIAL_CONTENT => part(&headers, wanted.range, answer.length)?,
        StatusCode::NOT_MODIFIED if wanted.etag.or(wanted.modified).is_some() => Content::Unchanged,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE => {
            let seconds = text(&headers, RETRY_AFTER).and_then(|text| text.trim().parse().ok());
            let retry_after = seconds.map_or(RETRY_AFTER_DEFAULT, Duration::from_secs);
            return Err(FetchError::Busy { retry_after });
        }
        status => return Err(refusal(status, &headers, &mut answer).await),
    };
    Ok(answer)
}

/// Checks that a part is the requested one, up to the end of the file.
fn part(
    headers: &HeaderMap,
    asked: Option<(u64, u64)>,
    length: Option<u64>,
) -> Result<Content, FetchError> {
    let found = text(headers, CONTENT_RANGE).unwrap_or_default();
    let (first, last) = asked.unwrap_or_default();
    let wrong = || FetchError::WrongRange { first, last, found: shown(found) };
    let (range, total) = found
        .strip_prefix("bytes ")
        .and_then(|range| range.split_once('/'))
        .and_then(|(range, total)| Some((range.split_once('-')?, total.parse::<u64>().ok())))
        .ok_or_else(wrong)?;
    let (Ok(begin), Ok(end)) = (range.0.parse::<u64>(), range.1.parse::<u64>()) else {
        return Err(wrong());
    };
    let ends_right = end == last || end < last && total == end.checked_add(1);
    let is_right = asked.is_some() && begin == first && begin <= end && ends_right;
    let length_is_right = length.is_none_or(|length| Some(length) == (end - first).checked_add(1));
    if is_right && length_is_right {
        Ok(Content::Part { first, last: end, total })
    } else {
        Err(wrong())
    }
}

/// The meaning of an error status. Object stores give details in XML.
async fn refusal(status: StatusCode, headers: &HeaderMap, answer: &mut Answer) -> FetchError {
    let mut code = None;
    if text(headers, CONTENT_TYPE).is_some_and(|kind| kind.contains("xml"))
        && let Ok(body) = answer.rest(REFUSAL_BYTES_MAX, answer.idle).await
    {
        let body = String::from_utf8_lossy(&body);
        let after = body.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
        code = after.map(|(code, _)| shown(code));
    }
    let absent = match status {
        StatusCode::NOT_FOUND => {
            !matches!(code.as_deref(), Some("NoSuchBucket" | "ContainerNotFound"))
        }
        StatusCode::GONE => true,
        // A wrong key does not mean a missing file.
        StatusCode::FORBIDDEN => code.as_deref().is_none_or(|code| code == "AccessDenied"),
        _ => false,
    };
    if absent { FetchError::Absent } else { FetchError::Status { status, code } }
}

async fn get_file(
    path: PathBuf,
    range: Option<(u64, u64)>,
    idle: Duration,
) -> Result<Answer, FetchError> {
    let mut file = File::open(path).await.map_err(FetchError::disk)?;
    let about = file.metadata().await.map_err(FetchError::disk)?;
    if !about.is_file() {
        return Err(FetchError::Absent);
    }
    let total = about.len();
    let (content, length) = match range {
        None => (Content::Whole, total),
        Some((first, last)) if first <= last && first < total => {
            file.seek(SeekFrom::Start(first)).await.map_err(FetchError::disk)?;
            let last = last.min(total - 1);
            (Content::Part { first, last, total: Some(total) }, last - first + 1)
        }
        Some((first, last)) => {
            return Err(FetchError::WrongRange { first, last, found: format!("bytes */{total}") });
        }
    };
    let pieces = ReaderStream::new(file.take(length)).map(|piece| piece.map_err(FetchError::disk));
    let (length, pieces) = (Some(length), pieces.boxed());
    Ok(Answer { content, length, etag: None, modified: None, pieces, rest: Bytes::new(), idle })
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS_MAX).collect()
}

#[cfg(test)]
mod client_test;
