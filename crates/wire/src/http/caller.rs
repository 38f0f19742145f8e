//! The caller's identity and role, for handlers.

use axum::extract::rejection::JsonRejection;
use axum::extract::{FromRequest, FromRequestParts, Request};
use cohort_identity::{Peer, Role, UnixTime};
use http::StatusCode;
use http::request::Parts;
use serde::de::DeserializeOwned;

use super::error::ApiError;

/// The verified peer behind a request. As an extractor, it responds with 401 if the client showed
/// no certificate, which only a server with optional client certificates allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller(pub Peer);

/// What the caller's certificate says, besides the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// The group, as the hub assigned it; `None` for people, and for certificates of another
    /// authority.
    pub group: Option<String>,
    /// The first second in which it is valid.
    pub not_before: UnixTime,
}

impl<S: Sync> FromRequestParts<S> for Certificate {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Certificate>().cloned().ok_or_else(ApiError::unauthenticated)
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _state: &S) -> Result<Self, ApiError> {
        parts.extensions.get::<Peer>().cloned().map(Caller).ok_or_else(ApiError::unauthenticated)
    }
}

/// Requires one of these roles.
pub(super) fn allow(peer: &Peer, roles: &[Role]) -> Result<(), ApiError> {
    if roles.contains(&peer.role) {
        return Ok(());
    }
    let names: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
    let (names, role) = (names.join(" or "), names[0]);
    Err(ApiError::forbidden(format!("{peer} may not do this; the role {names} is required")).hint(
        format!(
            "use a certificate of the role {role}; an operator creates a token for one with \
             `cohort token create --role {role} --name NAME`"
        ),
    ))
}

/// A JSON body; rejects malformed ones with an [`ApiError`].
#[derive(Debug, Clone)]
pub struct ApiJson<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for ApiJson<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        match axum::Json::<T>::from_request(request, state).await {
            Ok(axum::Json(value)) => Ok(Self(value)),
            Err(rejection) => Err(explain(&rejection)),
        }
    }
}

fn explain(rejection: &JsonRejection) -> ApiError {
    let status = rejection.status();
    let kind = match status {
        StatusCode::PAYLOAD_TOO_LARGE => "too_large",
        _ => "bad_request",
    };
    ApiError::new(status, kind, rejection.body_text())
}
