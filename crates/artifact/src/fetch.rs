//! Getting one small file whole from a mirror, within a limit of bytes and of time.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use url::Url;

/// To a mirror of the own zone, a connection takes milliseconds; across the world under a second.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// A mirror that sends nothing for this long is given up for the next.
const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// A metadata file (16 MiB at the most) that trickles in for longer is given up for the next.
const FILE_TIMEOUT: Duration = Duration::from_secs(60);

/// Mirrors may point elsewhere (to a bucket); chains of more are mistakes.
const REDIRECTS_MAX: usize = 3;

/// A place that serves a copy of the repository. Not trusted with anything.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Mirror {
    /// A static HTTP or HTTPS server; the URL ends with `/`.
    Http(Url),
    /// A folder on this machine.
    Folder(PathBuf),
}

impl Mirror {
    /// The URL of a file, when this is an HTTP mirror.
    #[must_use]
    pub fn url(&self, relative: &str) -> Option<Url> {
        match self {
            Self::Http(base) => base.join(relative).ok(),
            Self::Folder(_) => None,
        }
    }
}

impl fmt::Display for Mirror {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(url) => write!(f, "{url}"),
            Self::Folder(path) => write!(f, "{}", path.display()),
        }
    }
}

impl FromStr for Mirror {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with('/') {
            return Ok(Self::Folder(PathBuf::from(text)));
        }
        let mut url = Url::parse(text).map_err(|error| {
            format!("mirror `{text}` is neither a URL nor an absolute path: {error}")
        })?;
        match url.scheme() {
            "http" | "https" => {
                url.set_query(None);
                url.set_fragment(None);
                if !url.path().ends_with('/') {
                    url.set_path(&format!("{}/", url.path()));
                }
                Ok(Self::Http(url))
            }
            "file" => url
                .to_file_path()
                .map(Self::Folder)
                .map_err(|()| format!("mirror `{text}` is not a path on this machine")),
            "s3" | "gs" | "az" => Err(format!(
                "mirror `{text}` is a bucket: name its https address if everybody may read it, \
                 else a `cohort mirror --origin {text}`"
            )),
            scheme => Err(format!("mirror `{text}`: `{scheme}` is none of http, https, file")),
        }
    }
}

/// Why a mirror did not give a file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    /// It says that there is no such file.
    #[error("not found")]
    NotFound,
    /// The file is longer than allowed, or endless.
    #[error("more than {limit_bytes} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit_bytes: u64,
    },
    /// Nothing came in time.
    #[error("timed out")]
    TimedOut,
    /// The server answered with an error.
    #[error("answered with status {0}")]
    Status(u16),
    /// The server or the disk cannot be reached.
    #[error("{0}")]
    Unreachable(String),
}

/// Fetches small files from mirrors.
#[derive(Debug, Clone)]
pub struct Fetcher {
    client: reqwest::Client,
    file_timeout: Duration,
}

impl Fetcher {
    /// A fetcher with a client of its own: limited times and redirects, and no proxy, because what
    /// a fleet may install must not depend on the environment of whoever started the agent.
    ///
    /// # Errors
    /// When the system's certificates cannot be read.
    pub fn new() -> Result<Self, FetchError> {
        let client = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .redirect(reqwest::redirect::Policy::limited(REDIRECTS_MAX))
            .no_proxy()
            .build()
            .map_err(|error| FetchError::Unreachable(chain(&error)))?;
        Ok(Self::with_client(client))
    }

    /// A fetcher with a given client, such as one that knows a private certificate authority.
    #[must_use]
    pub fn with_client(client: reqwest::Client) -> Self {
        Self { client, file_timeout: FILE_TIMEOUT }
    }

    /// The same with another limit for the whole of one file.
    #[must_use]
    pub fn with_file_timeout(self, file_timeout: Duration) -> Self {
        Self { file_timeout, ..self }
    }

    /// Fetches a whole file of at most `bytes_max` bytes. `relative` is a path below the mirror's
    /// base, such as `metadata/timestamp.json`.
    ///
    /// # Errors
    /// When it is missing, too long, too slow, or the mirror cannot be reached.
    pub async fn fetch(
        &self,
        mirror: &Mirror,
        relative: &str,
        bytes_max: u64,
    ) -> Result<Bytes, FetchError> {
        let fetch = async {
            match mirror {
                Mirror::Http(base) => self.fetch_http(base, relative, bytes_max).await,
                Mirror::Folder(base) => fetch_file(base.join(relative), bytes_max).await,
            }
        };
        tokio::time::timeout(self.file_timeout, fetch).await.unwrap_or(Err(FetchError::TimedOut))
    }

    /// Fetches a large file of at most `bytes_max` bytes into `into`. There is no limit for its
    /// time as a whole, only for silence.
    ///
    /// # Errors
    /// As [`Fetcher::fetch`], or when `into` cannot be written.
    pub async fn fetch_to(
        &self,
        mirror: &Mirror,
        relative: &str,
        bytes_max: u64,
        into: &mut tokio::fs::File,
    ) -> Result<(), FetchError> {
        let disk = |error: io::Error| FetchError::Unreachable(error.to_string());
        let too_large = FetchError::TooLarge { limit_bytes: bytes_max };
        let mut left = bytes_max;
        match mirror {
            Mirror::Http(base) => {
                let mut response = self.ask(base, relative).await?;
                while let Some(piece) = response.chunk().await.map_err(failed)? {
                    left = left.checked_sub(piece.len() as u64).ok_or(too_large.clone())?;
                    into.write_all(&piece).await.map_err(disk)?;
                }
            }
            Mirror::Folder(base) => {
                let file = open(base.join(relative)).await?;
                let mut limited = file.take(bytes_max.saturating_add(1));
                let copied = tokio::io::copy(&mut limited, into).await.map_err(disk)?;
                if copied > bytes_max {
                    return Err(too_large);
                }
            }
        }
        into.flush().await.map_err(disk)
    }

    async fn ask(&self, base: &Url, relative: &str) -> Result<reqwest::Response, FetchError> {
        let url = base.join(relative).map_err(|error| FetchError::Unreachable(chain(&error)))?;
        let response = self.client.get(url).send().await.map_err(failed)?;
        match response.status().as_u16() {
            200 => Ok(response),
            // Object stores answer 403 for a missing file when listing is not allowed.
            403 | 404 | 410 => Err(FetchError::NotFound),
            status => Err(FetchError::Status(status)),
        }
    }

    async fn fetch_http(
        &self,
        base: &Url,
        relative: &str,
        bytes_max: u64,
    ) -> Result<Bytes, FetchError> {
        let mut response = self.ask(base, relative).await?;
        let too_large = FetchError::TooLarge { limit_bytes: bytes_max };
        if response.content_length().is_some_and(|length| length > bytes_max) {
            return Err(too_large);
        }
        let mut body = BytesMut::new();
        while let Some(piece) = response.chunk().await.map_err(failed)? {
            if body.len() as u64 + piece.len() as u64 > bytes_max {
                return Err(too_large);
            }
            body.extend_from_slice(&piece);
        }
        Ok(body.freeze())
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for `map_err`")]
fn failed(error: reqwest::Error) -> FetchError {
    if error.is_timeout() { FetchError::TimedOut } else { FetchError::Unreachable(chain(&error)) }
}

async fn open(path: PathBuf) -> Result<tokio::fs::File, FetchError> {
    tokio::fs::File::open(path).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => FetchError::NotFound,
        _ => FetchError::Unreachable(error.to_string()),
    })
}

async fn fetch_file(path: PathBuf, bytes_max: u64) -> Result<Bytes, FetchError> {
    let failed = |error: io::Error| FetchError::Unreachable(error.to_string());
    let file = open(path).await?;
    let mut body = Vec::new();
    file.take(bytes_max.saturating_add(1)).read_to_end(&mut body).await.map_err(failed)?;
    if body.len() as u64 > bytes_max {
        return Err(FetchError::TooLarge { limit_bytes: bytes_max });
    }
    Ok(Bytes::from(body))
}

/// An error with its causes on one line; the libraries keep the telling part in the cause.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}
