//! Maps each failure to the response that a caller gets.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use cohort_artifact::RepositoryError;
use cohort_base::{FileError, chain};
use cohort_core::ids::InvalidName;
use cohort_identity::{RedeemError, RequestError};
use cohort_mirror::BucketError;
use cohort_registry::RegistryError;
use cohort_wire::http::ApiError;
use cohort_wire::hub::OUTDATED;
use cohort_wire::kill::KillError;

use crate::removed::RemovedError;

pub(crate) type Answer<T> = Result<Json<T>, Refusal>;

/// An error response. `?` converts every failure that a handler can encounter.
#[derive(Debug)]
pub(crate) struct Refusal(pub(crate) ApiError);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        self.0.into_response()
    }
}

/// Maps each error to its response.
macro_rules! answers {
    ($($error:ty => $answer:expr),+ $(,)?) => {
        $(impl From<$error> for Refusal {
            fn from(error: $error) -> Self {
                let answer: fn(&$error) -> ApiError = $answer;
                Refusal(answer(&error))
            }
        })+
    };
}

impl From<ApiError> for Refusal {
    fn from(error: ApiError) -> Self {
        Refusal(error)
    }
}

impl From<KillError> for Refusal {
    fn from(error: KillError) -> Self {
        Refusal(error.into())
    }
}

answers! {
    InvalidName => |error| ApiError::bad_request(chain(error)),
    RequestError => |error| ApiError::bad_request(chain(error)),
    tokio::task::JoinError => |error| ApiError::internal(chain(error)),
    RegistryError => registry,
    RedeemError => redeem,
    RepositoryError => repository,
    BucketError => bucket,
    FileError => file,
    RemovedError => |error| match error {
        RemovedError::TooMany { dir } => ApiError::unavailable("full", chain(error))
            .hint(format!("remove the oldest files of {}, and restart the hub", dir.display())),
        RemovedError::File(error) => file(error),
    },
}

fn file(error: &FileError) -> ApiError {
    let reason = chain(error);
    tracing::error!(reason, "file operation failed");
    ApiError::unavailable("storage", reason).hint("check the hub's disk, and restart it")
}

fn registry(error: &RegistryError) -> ApiError {
    let reason = chain(error);
    match error {
        RegistryError::Invalid { .. } => ApiError::bad_request(reason),
        RegistryError::Conflict { .. }
        | RegistryError::Compacted { .. }
        | RegistryError::WentBack { .. }
        | RegistryError::Contended { .. } => ApiError::conflict(reason),
        RegistryError::RestoredUnconfirmed => {
            ApiError::new(StatusCode::CONFLICT, "restored", reason)
                .hint("on the hub's machine: cohort hub --config hub.toml --confirm-restored")
        }
        RegistryError::Forbidden { .. } => ApiError::forbidden(reason),
        RegistryError::Unavailable { .. } => ApiError::unavailable("unavailable", reason),
        RegistryError::Broken { .. } => ApiError::unavailable("storage", reason),
        RegistryError::Full { .. } => ApiError::unavailable("full", reason)
            .hint("remove groups that are gone: cohort group list"),
        RegistryError::Corrupt { .. } => ApiError::internal(reason),
        RegistryError::Storage { .. } => {
            tracing::error!(reason, "registry storage failed");
            ApiError::unavailable("storage", reason)
                .hint("see the hub's log, check its disk, and restart it")
        }
    }
}

fn redeem(error: &RedeemError) -> ApiError {
    let reason = chain(error);
    match error {
        RedeemError::Unknown
        | RedeemError::Used
        | RedeemError::Expired
        | RedeemError::Revoked
        | RedeemError::Grant { .. } => {
            ApiError::forbidden(reason).hint("ask an operator for a new one: cohort token create")
        }
        RedeemError::NameTaken(holder) => {
            ApiError::conflict(reason).hint("choose another `server` in agent.toml").hint(format!(
                "or, to replace it, stop its agent, then: cohort token create --name {}",
                holder.name
            ))
        }
        RedeemError::Token(_) => ApiError::bad_request(reason),
        RedeemError::TooMany => ApiError::unavailable("full", reason),
        _ => {
            tracing::error!(reason, "cannot process a join token");
            ApiError::internal(reason)
        }
    }
}

fn repository(error: &RepositoryError) -> ApiError {
    let reason = chain(error);
    match error {
        RepositoryError::Refused { .. } => {
            ApiError::new(StatusCode::UNPROCESSABLE_ENTITY, "refused", reason)
        }
        RepositoryError::Outdated => ApiError::new(StatusCode::CONFLICT, OUTDATED, reason)
            .hint("another publisher was faster: run the same command again"),
        RepositoryError::Stopped => ApiError::unavailable("stopping", reason),
        RepositoryError::File(error) => write_failed(&error.source, reason),
        _ => {
            tracing::error!(reason, "upload failed");
            ApiError::internal(reason)
        }
    }
}

/// The response if a file of the repository cannot be written.
pub(crate) fn write_failed(error: &std::io::Error, reason: String) -> ApiError {
    use std::io::ErrorKind;
    tracing::error!(reason, "cannot write to the repository");
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            ApiError::unavailable("full", "the hub's disk is full")
        }
        _ => ApiError::internal(reason),
    }
}

fn bucket(error: &BucketError) -> ApiError {
    let reason = chain(error);
    tracing::error!(reason, "cannot copy the upload to the bucket");
    let error = format!("the hub has the file, but its bucket does not: {reason}");
    ApiError::unavailable("bucket", error)
        .hint("the hub keeps trying; publish again to see whether it arrived")
}
