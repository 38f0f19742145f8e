//! Changes of a group's records, attested by its members.
//!
//! One server's certificate does not speak for its group. A leader therefore asks the other members
//! whether a change follows from the log, and the hub takes it only with their signatures.

use cohort_base::chain;
use cohort_core::ids::{GroupId, ServerId};
use cohort_identity::{
    CertificateDer, Identity, Role, SignedStatement, StatementError, UnixTime, sha256_hex,
    sign_statement, verify_statement,
};
use cohort_wire::http::ApiError;
use serde::{Deserialize, Serialize};

use crate::api::{Compare, Op};

#[cfg(test)]
#[path = "attest_test.rs"]
mod attest_test;

/// `POST` a [`AttestRequest`], at a member's control port. The response is an [`Attestation`].
pub const ATTEST: &str = "/v1/attest";
/// Most attestations of a transaction: many more than a group has members.
pub const ATTESTATIONS_MAX: usize = 32;

/// The kind of signed statement.
const CONTEXT: &str = "cohort-attestation/1";
/// Asks a member whether changes of its group's records follow from the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttestRequest {
    /// What the change is bound to: without it, the signature could be used again later.
    pub compare: Vec<Compare>,
    pub changes: Vec<Op>,
    /// The index that the leader had applied.
    pub applied: u64,
}

/// What is signed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Attested {
    group: GroupId,
    /// The SHA-256 hash of the comparisons and the changes, as JSON.
    changes: String,
}

/// A member's signature: its group's log says the same as these changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attestation(pub SignedStatement);

impl Attestation {
    /// Signs changes of a group's records. What they are compared with makes the signature good
    /// for one state of the registry.
    ///
    /// # Errors
    /// If the identity's key cannot sign.
    ///
    /// # Panics
    /// Never: names and numbers become JSON.
    pub fn sign(
        identity: &Identity,
        group: &GroupId,
        compare: &[Compare],
        changes: &[Op],
    ) -> Result<Self, StatementError> {
        let attested = Attested { group: group.clone(), changes: hash_of(compare, changes) };
        let body = serde_json::to_vec(&attested).expect("names and numbers become JSON");
        sign_statement(identity, CONTEXT, &body).map(Self)
    }

    /// Verifies that a server attests these changes of the group's records; `now` is the verifier's
    /// clock. Whether the server belongs to the group, the caller has to find out.
    ///
    /// # Errors
    /// The answer for the sender: the signature does not verify, or is about something else.
    pub fn verify(
        &self,
        roots: &[CertificateDer<'_>],
        group: &GroupId,
        (compare, changes): (&[Compare], &[Op]),
        now: UnixTime,
    ) -> Result<ServerId, ApiError> {
        let by = verify_statement(roots, CONTEXT, &self.0, &[Role::Agent], now)
            .map_err(|error| ApiError::forbidden(chain(&error)))?;
        let attested: Attested = serde_json::from_slice(&self.0.body)
            .map_err(|error| ApiError::bad_request(format!("malformed attestation: {error}")))?;
        if (&attested.group, &attested.changes) != (group, &hash_of(compare, changes)) {
            return Err(ApiError::forbidden(format!("{by} attests something else")));
        }
        ServerId::new(by.name.as_str()).map_err(|error| ApiError::forbidden(chain(&error)))
    }
}

fn hash_of(compare: &[Compare], changes: &[Op]) -> String {
    let bytes = serde_json::to_vec(&(compare, changes)).expect("changes are texts");
    sha256_hex(&bytes)
}

/// Whether every change is bound to a state of its own key.
#[must_use]
pub fn is_bound(compare: &[Compare], changes: &[Op]) -> bool {
    changes.iter().all(|change| compare.iter().any(|it| it.key == change.key()))
}
