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

use crate::api::Op;

#[cfg(test)]
#[path = "attest_test.rs"]
mod attest_test;

/// `POST` a [`AttestRequest`], at a member's control port. The response is an [`Attestation`].
pub const ATTEST: &str = "/v1/attest";
/// Most attestations of a transaction: many more than a group has members.
pub const ATTESTATIONS_MAX: usize = 32;

/// The kind of signed statement.
const CONTEXT: &str = "cohort-attestation/1";
/// How far the clocks of a member and the hub may differ, in seconds: an hour, as for what servers
/// submit to their group.
const AGE_S_MAX: u64 = 3600;

/// Asks a member whether changes of its group's records follow from the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AttestRequest {
    pub changes: Vec<Op>,
    /// The index that the leader had applied.
    pub applied: u64,
}

/// What is signed.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Attested {
    group: GroupId,
    /// Unix time in seconds, by the member's clock.
    at: u64,
    /// The SHA-256 hash of the changes, as JSON.
    changes: String,
}

/// A member's signature: its group's log says the same as these changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Attestation(pub SignedStatement);

impl Attestation {
    /// Signs changes of a group's records.
    ///
    /// # Errors
    /// If the identity's key cannot sign.
    ///
    /// # Panics
    /// Never: names and numbers become JSON.
    pub fn sign(
        identity: &Identity,
        group: &GroupId,
        changes: &[Op],
        now: UnixTime,
    ) -> Result<Self, StatementError> {
        let (group, at, changes) = (group.clone(), now.as_secs(), hash_of(changes));
        let attested = Attested { group, at, changes };
        let body = serde_json::to_vec(&attested).expect("names and numbers become JSON");
        sign_statement(identity, CONTEXT, &body).map(Self)
    }

    /// Verifies that a server attests these changes of the group's records; `now` is the verifier's
    /// clock. Whether the server belongs to the group, the caller has to find out.
    ///
    /// # Errors
    /// The answer for the sender: the signature does not verify, is about something else, or too
    /// old.
    pub fn verify(
        &self,
        roots: &[CertificateDer<'_>],
        group: &GroupId,
        changes: &[Op],
        now: UnixTime,
    ) -> Result<ServerId, ApiError> {
        let by = verify_statement(roots, CONTEXT, &self.0, &[Role::Agent], now)
            .map_err(|error| ApiError::forbidden(chain(&error)))?;
        let attested: Attested = serde_json::from_slice(&self.0.body)
            .map_err(|error| ApiError::bad_request(format!("malformed attestation: {error}")))?;
        if (&attested.group, &attested.changes) != (group, &hash_of(changes)) {
            return Err(ApiError::forbidden(format!("{by} attests something else")));
        }
        let off_s = now.as_secs().abs_diff(attested.at);
        if off_s > AGE_S_MAX {
            let error = format!(
                "{by} attests this {off_s} s away from the hub's time; at most {AGE_S_MAX} s are \
                 accepted"
            );
            return Err(ApiError::forbidden(error).hint("compare the clocks: date --utc"));
        }
        ServerId::new(by.name.as_str()).map_err(|error| ApiError::forbidden(chain(&error)))
    }
}

fn hash_of(changes: &[Op]) -> String {
    let bytes = serde_json::to_vec(changes).expect("changes are texts");
    sha256_hex(&bytes)
}
