//! What servers and people submit to a group. Its author signs it, so that any member may pass it
//! on, and the leader knows whom it is from.
//!
//! A member's certificate therefore speaks for its own server only. What keeps a signed submission
//! from being used again: the group's name, then of a report its incarnation, boot epoch and
//! sequence, of a command its request id and time, of a request to join its time.

use cohort_base::chain;
use cohort_core::ids::{GroupId, Incarnation};
use cohort_core::report::Report;
use cohort_identity::{
    CertificateDer, Identity, Peer, Role, SignedStatement, StatementError, UnixTime,
    sign_statement, verify_statement,
};
use serde::{Deserialize, Serialize};

use super::{CONTROL_VERSION, CommandRequest, JoinGroupRequest};
use crate::http::ApiError;

/// The kind of signed statement.
const CONTEXT: &str = "cohort-submission/1";

/// How far the clocks of the author and of the leader may differ when a command or a request to
/// join arrives, in seconds: an hour. A member that kept one back cannot play it later.
pub const SUBMISSION_AGE_S_MAX: u64 = 3600;

/// What is submitted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "submits", rename_all = "kebab-case")]
pub enum Submission {
    /// By a server: what happened there.
    Report {
        /// The agent's life, as in [`OrdersRequest`](super::OrdersRequest).
        life: u64,
        /// The incarnation of the group that gave the orders.
        incarnation: Incarnation,
        report: Report,
    },
    /// By a server: it joins, has moved, or its agent has restarted.
    Join(JoinGroupRequest),
    /// By an operator.
    Command(CommandRequest),
}

impl Submission {
    fn author(&self) -> Role {
        match self {
            Submission::Report { .. } | Submission::Join(_) => Role::Agent,
            Submission::Command(_) => Role::Operator,
        }
    }

    /// Checks what the log keeps of it: that it is short, and is about its author.
    fn check(&self, by: &Peer) -> Result<(), ApiError> {
        match self {
            Submission::Report { report, .. } if report.server.as_str() != by.name.as_str() => {
                Err(ApiError::forbidden(format!("{by} may only report for itself")))
            }
            Submission::Report { report, .. } if report.outcome.is_too_long() => {
                Err(ApiError::bad_request("the texts of a report are too long"))
            }
            Submission::Report { .. } => Ok(()),
            Submission::Join(request) => request.check(),
            Submission::Command(request) => request.check(),
        }
    }
}

/// What is signed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Signed {
    version: u32,
    group: GroupId,
    /// Unix time in seconds, by the author's clock.
    at: u64,
    submission: Submission,
}

/// A submission with its author's certificate and signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SignedSubmission(pub SignedStatement);

impl SignedSubmission {
    /// Signs a submission to a group.
    ///
    /// # Errors
    /// If it is too large, or the identity's key cannot sign.
    pub fn sign(
        identity: &Identity,
        group: &GroupId,
        submission: Submission,
    ) -> Result<Self, StatementError> {
        let at = UnixTime::now().as_secs();
        let signed = Signed { version: CONTROL_VERSION, group: group.clone(), at, submission };
        let body = serde_json::to_vec(&signed).expect("a submission has text keys only");
        sign_statement(identity, CONTEXT, &body).map(Self)
    }

    /// Verifies who submits what to `group`; `now` is the verifier's clock.
    ///
    /// # Errors
    /// The answer for the sender: the signature does not verify, the author may not submit
    /// this, it is for another group, too old, or too long for the log.
    pub fn verify(
        &self,
        roots: &[CertificateDer<'_>],
        group: &GroupId,
        now: UnixTime,
    ) -> Result<(Peer, Submission), ApiError> {
        let roles = [Role::Agent, Role::Operator];
        let by = verify_statement(roots, CONTEXT, &self.0, &roles, now)
            .map_err(|error| ApiError::forbidden(chain(&error)))?;
        let signed: Signed = serde_json::from_slice(&self.0.body)
            .map_err(|error| ApiError::bad_request(format!("malformed submission: {error}")))?;
        let Signed { version, group: to, at, submission } = signed;
        if version != CONTROL_VERSION {
            let error = format!("control message version {version} is not supported here");
            return Err(ApiError::bad_request(error).hint("use the version that the agents run"));
        }
        if to != *group {
            return Err(ApiError::conflict(format!("it was submitted to {to}, not to {group}")));
        }
        if by.role != submission.author() {
            let role = submission.author().as_str();
            return Err(ApiError::forbidden(format!(
                "{by} may not submit this; the role {role} is required"
            )));
        }
        submission.check(&by)?;
        let off_s = now.as_secs().abs_diff(at);
        if off_s > SUBMISSION_AGE_S_MAX && !matches!(submission, Submission::Report { .. }) {
            let error = format!(
                "{by} signed it {off_s} s away from this member's time; at most \
                 {SUBMISSION_AGE_S_MAX} s are accepted"
            );
            return Err(ApiError::forbidden(error).hint("compare the clocks: date --utc"));
        }
        Ok((by, submission))
    }
}

/// A submission that a member passes on to the leader.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forwarded {
    pub submission: SignedSubmission,
    /// The IP address that a server joins from, as the member sees it.
    pub host: Option<std::net::IpAddr>,
}

#[cfg(test)]
#[path = "submission_test.rs"]
mod submission_test;
