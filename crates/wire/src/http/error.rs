//! A server's error responses ([`ApiError`]) and a caller's errors ([`CallError`]).

use std::io;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use cohort_base::Cause;
use cohort_identity::Peer;
use http::{HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::limits::RETRY_AFTER_S;

/// An error response: a status, and `{kind, error, hints}` as its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{error}")]
pub struct ApiError {
    /// The HTTP status; not in the body.
    #[serde(skip, default = "default_status")]
    pub status: u16,
    /// For programs, such as `forbidden`.
    pub kind: String,
    pub error: String,
    /// How to fix it, often the next command.
    #[serde(default)]
    pub hints: Vec<String>,
}

fn default_status() -> u16 {
    StatusCode::INTERNAL_SERVER_ERROR.as_u16()
}

impl ApiError {
    /// An error response without hints.
    #[must_use]
    pub fn new(status: StatusCode, kind: &str, error: impl Into<String>) -> Self {
        let (kind, error) = (kind.to_owned(), error.into());
        Self { status: status.as_u16(), kind, error, hints: Vec::new() }
    }

    /// Adds a hint, after those already there.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// 400: a malformed or contradictory request.
    #[must_use]
    pub fn bad_request(error: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "bad_request", error)
    }

    /// 401: a client certificate is required.
    #[must_use]
    pub fn unauthenticated() -> Self {
        let error = "a client certificate is required, and the connection has none";
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", error)
    }

    /// 403: the caller's certificate is valid, and revoked.
    #[must_use]
    pub fn revoked() -> Self {
        Self::new(StatusCode::FORBIDDEN, "revoked", "your certificate is revoked")
            .hint("ask an operator: `cohort person revoked` shows by whom and why")
    }

    /// 403: the caller's role may not do this.
    #[must_use]
    pub fn forbidden(error: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", error)
    }

    /// 404: no such object.
    #[must_use]
    pub fn not_found(error: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", error)
    }

    /// 409: the state has changed or does not allow it.
    #[must_use]
    pub fn conflict(error: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", error)
    }

    /// 413: the request's body exceeds the limit.
    #[must_use]
    pub fn too_large(bytes_max: u64) -> Self {
        let error = format!("the request's body exceeds the limit of {bytes_max} bytes");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", error)
    }

    /// 500: a failure of the server.
    #[must_use]
    pub fn internal(error: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", error)
    }

    /// 503 with `Retry-After`, for a temporary condition.
    #[must_use]
    pub fn unavailable(kind: &str, error: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, kind, error)
    }

    /// 503: a limit on concurrent work is reached.
    #[must_use]
    pub fn overloaded(error: impl Into<String>) -> Self {
        Self::unavailable("overloaded", error).hint("try again in a moment")
    }

    /// Parses an error response. A body that is not ours (an intermediary's, or none) gets the kind
    /// `http`.
    pub(crate) fn from_answer(status: StatusCode, body: &[u8]) -> Self {
        match serde_json::from_slice::<ApiError>(body) {
            Ok(error) => Self { status: status.as_u16(), ..error },
            Err(_) => {
                let text = String::from_utf8_lossy(body);
                let text: String = text.trim().chars().take(200).collect();
                let name = status.canonical_reason().unwrap_or("unknown status");
                let separator = if text.is_empty() { "" } else { ": " };
                let error = format!("the answer was {} ({name}){separator}{text}", status.as_u16());
                let kind = if status == StatusCode::NOT_FOUND { "not_found" } else { "http" };
                Self::new(status, kind, error)
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

/// Why a call failed. `address` is the `host:port` that was called.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    #[error("{address} refused the connection")]
    Refused { address: String },
    /// No route, no such name, or the connection broke while being made.
    #[error("{address} is unreachable")]
    Unreachable { address: String, source: io::Error },
    /// A deadline passed. `sent`: whether sending the request had started.
    #[error("{address} took longer than {} ms while {doing}", after.as_millis())]
    TimedOut { address: String, doing: &'static str, after: Duration, sent: bool },
    /// One side rejected the other's certificate or protocol.
    #[error("TLS with {address} failed, expected {expected}")]
    Identity { address: String, expected: Box<Peer>, source: Cause },
    #[error("{answer}")]
    Answered { address: String, answer: Box<ApiError> },
    #[error("{address} answered with more than {bytes_max} bytes")]
    TooLarge { address: String, bytes_max: u64 },
    #[error("connection to {address} broke while {doing}")]
    Broken { address: String, doing: &'static str, source: Cause },
    /// The response is not HTTP, or not the expected JSON.
    #[error("{address} sent a malformed answer")]
    Malformed { address: String, source: Cause },
    /// The request is invalid; nothing was sent.
    #[error("cannot make a request to {address}")]
    Request { address: String, source: Cause },
}

impl CallError {
    /// The error's kind, for programs; for an error response, the server's own.
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

    /// Whether the peer answered, whatever it said: it is at this address.
    #[must_use]
    pub fn is_answer(&self) -> bool {
        matches!(self, CallError::Answered { .. } | CallError::TooLarge { .. })
    }

    /// How to fix it; for an error response, the server's own hints.
    #[must_use]
    pub fn hints(&self) -> Vec<String> {
        match self {
            CallError::Refused { address } => {
                vec![format!("is it running and listening on {address}?")]
            }
            CallError::Unreachable { .. } | CallError::TimedOut { .. } => {
                vec!["check the address and the network in between".to_owned()]
            }
            CallError::Identity { expected, .. } => vec![
                format!("is the server at this address really {expected}?"),
                "were both certificates issued by the same authority, and are both clocks correct?"
                    .to_owned(),
            ],
            CallError::Answered { answer, .. } => answer.hints.clone(),
            CallError::TooLarge { .. }
            | CallError::Broken { .. }
            | CallError::Malformed { .. }
            | CallError::Request { .. } => Vec::new(),
        }
    }

    /// The HTTP status, if the server responded.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            CallError::Answered { answer, .. } => Some(answer.status),
            _ => None,
        }
    }

    /// Whether the server may have acted on the request; `false` only if it cannot have seen it.
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

    /// Whether the callee is unreachable or unavailable, rather than refusing.
    #[must_use]
    pub fn is_away(&self) -> bool {
        match self {
            CallError::Refused { .. }
            | CallError::Unreachable { .. }
            | CallError::TimedOut { .. }
            | CallError::Broken { .. } => true,
            // From an intermediary, or a server that is starting or overloaded.
            CallError::Answered { answer, .. } => answer.status == 503,
            _ => false,
        }
    }
}
