//! Errors of requests to mirrors.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

/// Why a mirror did not deliver.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FetchError {
    /// The mirror has no such file (404, 410, or the 403 that object stores send without permission
    /// to list).
    #[error("no such file")]
    Absent,
    /// The mirror is overloaded (429, 503).
    #[error("busy, retry after {} ms", .retry_after.as_millis())]
    Busy {
        /// Its `Retry-After`; one second if there was none.
        retry_after: Duration,
    },
    /// A status other than those above.
    #[error("answered with status {status}{}", in_brackets(.code.as_deref()))]
    Status {
        status: StatusCode,
        /// An object store's error code, such as `InvalidAccessKeyId`.
        code: Option<String>,
    },
    #[error("ignores ranges")]
    RangeIgnored,
    /// The response contains another part of the file than requested.
    #[error("asked for bytes {first}-{last}, answered with `{found}`")]
    WrongRange {
        first: u64,
        last: u64,
        /// The `Content-Range` of the response, truncated.
        found: String,
    },
    /// The file exceeds the limit for its kind, or is endless.
    #[error("more than {limit_bytes} bytes")]
    TooLarge { limit_bytes: u64 },
    /// Too little arrived in time.
    #[error("no {what} within {} ms", .limit.as_millis())]
    TimedOut { what: &'static str, limit: Duration },
    /// A hub that is read with a certificate, by a program that has none.
    #[error("only programs with a certificate of the fleet can read it")]
    NoCertificate,
    #[error("connection failed")]
    Connection(#[source] Arc<reqwest::Error>),
    /// A file in a directory cannot be read, or what was fetched cannot be written.
    #[error("disk failed")]
    Disk(#[source] Arc<io::Error>),
    /// The path is not a file below the mirror.
    #[error("`{path}` is not the path of a file")]
    Path {
        path: String,
        #[source]
        source: url::ParseError,
    },
}

fn in_brackets(code: Option<&str>) -> String {
    code.map(|code| format!(" ({code})")).unwrap_or_default()
}

/// Too many redirects, a cycle, or a redirect from https to http.
#[derive(Debug, thiserror::Error)]
pub(super) enum RedirectError {
    #[error("more than {0} redirects")]
    TooMany(usize),
    #[error("redirect loop")]
    Circle,
    #[error("redirects from https to {0}")]
    Downgrade(String),
}

impl FetchError {
    /// The URL may contain secrets, so it is left out.
    pub(super) fn connection(error: reqwest::Error) -> Self {
        Self::Connection(Arc::new(error.without_url()))
    }

    pub(super) fn disk(error: io::Error) -> Self {
        use io::ErrorKind::{NotADirectory, NotFound};
        match error.kind() {
            NotFound | NotADirectory => Self::Absent,
            _ => Self::Disk(Arc::new(error)),
        }
    }
}
