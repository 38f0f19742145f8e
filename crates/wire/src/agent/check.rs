//! What checks see on a server, without any effect.

use cohort_core::ids::AppId;
use cohort_core::policy::Check;
use serde::{Deserialize, Serialize};

/// `POST` a [`CheckRequest`], operators: makes checks once against what runs on this server. The
/// response is a [`CheckAnswer`].
pub const CHECK: &str = "/v1/check";
/// The longest that one of them may take, in milliseconds; a policy may allow more.
pub const CHECK_MS_MAX: u64 = 20_000;

/// Checks to try.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckRequest {
    pub app: AppId,
    /// As in a policy, at most [`CHECKS_MAX`](cohort_core::policy::CHECKS_MAX).
    pub checks: Vec<Check>,
}

/// What they saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckAnswer {
    /// One for each check, in the same order.
    pub checks: Vec<CheckSeen>,
}

/// What a check saw.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckSeen {
    /// Its kind and its target on this server, such as `http :8080/healthz`.
    pub check: String,
    /// Why it does not pass; `None` if it does.
    pub failure: Option<String>,
}
