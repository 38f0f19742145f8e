//! What operators want of an app: a policy, or that it is removed. They sign it, so that whoever
//! keeps and passes it on, such as the hub, can withhold it and nothing else.

use cohort_base::chain;
use cohort_core::ids::{AppId, Revision};
use cohort_identity::{
    CertificateDer, Identity, Peer, Role, SignedStatement, StatementError, UnixTime,
    sign_statement, verify_statement,
};
use serde::{Deserialize, Serialize};

use crate::http::ApiError;

#[cfg(test)]
#[path = "intent_test.rs"]
mod intent_test;

/// The kind of signed statement.
const CONTEXT: &str = "cohort-app/1";

/// What an operator wants of an app from now on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AppIntent {
    pub app: AppId,
    /// Its place in the order of everything that was wanted of the app: groups ignore a lower one
    /// than they know, so an old intent cannot be passed off as the present one. At most the next
    /// revision of the registry.
    pub revision: Revision,
    pub wanted: Wanted,
    /// Unix seconds by the operator's clock; for people only.
    pub at: u64,
}

/// What to do with an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wanted {
    /// Run it by this policy: the keys of the policy file. Each reader parses it with the rules of
    /// its own version.
    Policy(serde_json::Value),
    /// Stop it everywhere and forget it.
    Removal,
}

/// An intent with its operator's signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SignedIntent(pub SignedStatement);

impl SignedIntent {
    /// Signs an intent. The receiver checks the signer's role.
    ///
    /// # Errors
    /// If it is longer than a statement may be, or the identity's key cannot sign.
    pub fn sign(identity: &Identity, intent: &AppIntent) -> Result<Self, IntentError> {
        let body = serde_json::to_vec(intent).map_err(IntentError::Malformed)?;
        sign_statement(identity, CONTEXT, &body).map(Self).map_err(IntentError::Statement)
    }

    /// Verifies that an operator signed it, whose certificate is valid now; returns the operator
    /// and the intent.
    ///
    /// A certificate that has expired since proves nothing: whoever has found its key could sign
    /// with an earlier date. Groups that know the intent keep it.
    ///
    /// # Errors
    /// If the signature does not verify, the signer is not an operator, or it is malformed.
    pub fn verify(
        &self,
        roots: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(Peer, AppIntent), IntentError> {
        let peer = verify_statement(roots, CONTEXT, &self.0, &[Role::Operator], now)
            .map_err(IntentError::Statement)?;
        Ok((peer, self.unverified()?))
    }

    /// The intent, without checking the signature.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn unverified(&self) -> Result<AppIntent, IntentError> {
        serde_json::from_slice(&self.0.body).map_err(IntentError::Malformed)
    }
}

/// Why an intent was rejected, or could not be signed.
#[derive(Debug, thiserror::Error)]
pub enum IntentError {
    /// The signature, the signer's certificate or its role is wrong.
    #[error("no operator's signature proves what the hub has of the app")]
    Statement(#[source] StatementError),
    /// Signed, but not an intent.
    #[error("malformed statement about an app")]
    Malformed(#[source] serde_json::Error),
}

impl From<IntentError> for ApiError {
    fn from(error: IntentError) -> ApiError {
        let reason = chain(&error);
        match error {
            IntentError::Statement(_) => ApiError::forbidden(reason).hint(
                "an operator's certificate signs it: `cohort app apply -f FILE` or \
                 `cohort app remove APP`",
            ),
            IntentError::Malformed(_) => ApiError::bad_request(reason),
        }
    }
}
