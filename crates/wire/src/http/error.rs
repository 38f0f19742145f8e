//! Errors on both sides: what a server answers ([`ApiError`]) and what a caller gets
//! ([`CallError`]).

use std::io;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use cohort_identity::Peer;
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::limits::RETRY_AFTER_S;

/// An error answer: a status, and `{kind, error, hints}` as its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{error}")]
pub struct ApiError {
    /// The HTTP status; not in the body.
    #[serde(skip, default = "default_status")]
    pub status: u16,
    /// A word for programs, such as `forbidden`.
    pub kind: String,
    /// A sentence for people.
    pub error: String,
    /// What to do about it; often the next command to type.
    #[serde(default)]
    pub hints: Vec<String>,
}

fn default_status() -> u16 {
    StatusCode::INTERNAL_SERVER_ERROR.as_u16()
}

impl ApiError {
    /// An error answer without hints.
    #[must_use]
    pub fn new(status: StatusCode, kind: &str, error: impl Into<String>) -> Self {
        let (kind, error) = (kind.to_owned(), error.into());
        Self { status: status.as_u16(), kind, error, hints: Vec::new() }
    }

    /// With one more hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// 400: the request makes no sense.
    #[must_use]
    pub fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", error)
    }

    /// 401: only for those with a certificate.
    #[must_use]
    pub fn unauthenticated() -> Self {
        let error = "this needs a client certificate, and the connection came without one";
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", error)
    }

    /// 403: not for this role.
    #[must_use]
    pub fn forbidden(error: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", error)
    }

    /// 404: there is no such thing.
    #[must_use]
    pub fn not_found(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", error)
    }

    /// 409: it does not fit what is there.
    #[must_use]
    pub fn conflict(error: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", error)
    }

    /// 413: the body is too large.
    #[must_use]
    pub fn too_large(bytes_max: u64) -> Self {
        let error = format!("the request's body is too large: at most {bytes_max} bytes are read");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", error)
    }

    /// 500: our fault.
    #[must_use]
    pub fn internal(error: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error)
    }

    /// 503: not now; the answer says when to try again.
    #[must_use]
    pub fn unavailable(kind: &str, error: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, kind, error)
    }

    /// 503: more to do than there is room for.
    #[must_use]
    pub fn overloaded(error: impl Into<String>) -> Self {
        Self::unavailable("overloaded", error).hint("try again in a moment")
    }

    /// What a caller makes of an error answer. A body that is not ours (an intermediary's, or none)
    /// becomes the kind `http`.
    pub(crate) fn from_answer(status: StatusCode, body: &[u8]) -> Self {
        match serde_json::from_slice::<ApiError>(body) {
            Ok(error) => Self { status: status.as_u16(), ..error },
            Err(_) => {
                let text = String::from_utf8_lossy(body);
                let text: String = text.trim().chars().take(200).collect();
                let name = status.canonical_reason().unwrap_or("unknown status");
                let error = if text.is_empty() {
                    format!("the answer was {} ({name})", status.as_u16())
                } else {
                    format!("the answer was {} ({name}): {text}", status.as_u16())
                };
                Self::new(
                    status,
                    if status == StatusCode::NOT_FOUND { "not_found" } else { "http" },
                    error,
                )
            }
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, axum::Json(&self)).into_response();
        if status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(RETRY_AFTER_S));
        }
        response
    }
}

/// Why a call gave no good answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// Nobody listens there.
    #[error("{address} refused the connection")]
    Refused {
        /// What was dialled.
        address: String,
    },
    /// There is no way there, or no such name.
    #[error("{address} cannot be reached")]
    Unreachable {
        /// What was dialled.
        address: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It took too long.
    #[error("{address} took longer than {} ms while {doing}", after.as_millis())]
    TimedOut {
        /// What was dialled.
        address: String,
        /// What was waited for.
        doing: &'static str,
        /// How long was waited.
        after: Duration,
        /// Whether the request was on its way.
        sent: bool,
    },
    /// One side does not accept the other's certificate, or the protocol.
    #[error("TLS with {address}, where {expected} is expected, failed: {reason}")]
    Identity {
        /// What was dialled.
        address: String,
        /// Who was expected there.
        expected: Box<Peer>,
        /// What TLS said.
        reason: String,
    },
    /// An error answer.
    #[error("{answer}")]
    Answered {
        /// What was dialled.
        address: String,
        /// The answer.
        #[source]
        answer: Box<ApiError>,
    },
    /// The answer is larger than the caller reads.
    #[error("{address} answered with more than {bytes_max} bytes")]
    TooLarge {
        /// What was dialled.
        address: String,
        /// How much is read.
        bytes_max: u64,
    },
    /// The connection broke before the answer was complete.
    #[error("{address} broke the connection while {doing}: {reason}")]
    Broken {
        /// What was dialled.
        address: String,
        /// What was waited for.
        doing: &'static str,
        /// What was seen.
        reason: String,
    },
    /// The answer cannot be understood.
    #[error("{address} gave an answer that cannot be read: {reason}")]
    Malformed {
        /// What was dialled.
        address: String,
        /// Why.
        reason: String,
    },
    /// The request itself cannot be made; nothing was sent.
    #[error("request to {address} cannot be made: {reason}")]
    Request {
        /// What was to be dialled.
        address: String,
        /// Why.
        reason: String,
    },
}

impl CallError {
    /// A word for programs: the server's own for an error answer.
    #[must_use]
    pub fn kind(&self) -> &str {
        match self {
            CallError::Refused { .. } => "refused",
            CallError::Unreachable { .. } => "unreachable",
            CallError::TimedOut { .. } => "timed_out",
            CallError::Identity { .. } => "identity",
            CallError::Answered { answer, .. } => &answer.kind,
            CallError::TooLarge { .. } => "answer_too_large",
            CallError::Broken { .. } => "broken",
            CallError::Malformed { .. } => "malformed_answer",
            CallError::Request { .. } => "request",
        }
    }

    /// What to do about it.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        match self {
            CallError::Refused { address } => {
                vec![format!("is it running, and does it listen on {address}?")]
            }
            CallError::Unreachable { .. } | CallError::TimedOut { .. } => {
                vec!["check the address and the network between".to_owned()]
            }
            CallError::Identity { expected, .. } => vec![
                format!("is the one at this address really {expected}?"),
                "were both certificates issued by the same authority, and are both clocks right?"
                    .to_owned(),
            ],
            CallError::Answered { answer, .. } => answer.hints.clone(),
            CallError::TooLarge { .. }
            | CallError::Broken { .. }
            | CallError::Malformed { .. }
            | CallError::Request { .. } => Vec::new(),
        }
    }

    /// The status of an error answer.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            CallError::Answered { answer, .. } => Some(answer.status),
            _ => None,
        }
    }

    /// Whether the other side may have acted on the request: `false` only when it certainly has
    /// not seen it.
    #[must_use]
    pub fn may_have_happened(&self) -> bool {
        match self {
            CallError::Refused { .. }
            | CallError::Unreachable { .. }
            | CallError::Identity { .. }
            | CallError::Request { .. } => false,
            CallError::TimedOut { sent, .. } => *sent,
            CallError::Answered { .. }
            | CallError::TooLarge { .. }
            | CallError::Broken { .. }
            | CallError::Malformed { .. } => true,
        }
    }
}
