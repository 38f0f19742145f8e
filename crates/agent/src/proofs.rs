//! Which policies in the group's log an operator signed. A leader could write others; members give
//! no orders by them, and one member's orders count for nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use cohort_base::chain;
use cohort_core::State;
use cohort_core::ids::{AppId, Revision};
use cohort_core::phase::Phase;
use cohort_core::policy::Proof;
use cohort_core::state::App;
use cohort_identity::{CertificateDer, UnixTime};
use cohort_wire::http::ApiError;
use cohort_wire::intent::{SignedIntent, Wanted};
use parking_lot::Mutex;

use crate::duties::read_registry::policy_of;

/// What is kept of a signed intent in the log.
pub(crate) fn proof_of(signed: &SignedIntent) -> Proof {
    Proof(serde_json::to_string(signed).unwrap_or_default().into())
}

/// The apps whose policy, or removal, was verified here, with its revision.
#[derive(Debug, Default)]
pub(crate) struct Proofs {
    verified: Mutex<BTreeMap<AppId, Revision>>,
}

impl Proofs {
    /// Verifies the policies that were not verified yet.
    ///
    /// # Errors
    /// The answer for a server that asks for orders: an app is in the log without an operator's
    /// word.
    pub(crate) fn check(
        &self,
        state: &State,
        roots: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), ApiError> {
        let mut verified = self.verified.lock();
        verified.retain(|app, _| state.apps.contains_key(app));
        for (id, app) in &state.apps {
            if verified.get(id) == Some(&app.revision) {
                continue;
            }
            if let Err(why) = verify(id, app, roots, now) {
                tracing::error!(app = %id, revision = %app.revision, why, "policy not proven");
                let error = format!(
                    "no operator's signature proves what the log of {} has of {id}: {why}",
                    state.group
                );
                let hint = "its leader may be hostile: cohort server revoke SERVER --reason TEXT";
                return Err(ApiError::unavailable("unproven", error).hint(hint));
            }
            verified.insert(id.clone(), app.revision);
        }
        Ok(())
    }
}

/// Whether an operator signed what the log has of an app. The leader has compared the time with
/// the certificate's when it took this; a member that starts later verifies it as of when it was
/// signed, since the certificate may have expired.
fn verify(
    id: &AppId,
    app: &App,
    roots: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), String> {
    let signed: SignedIntent =
        serde_json::from_str(&app.proof.0).map_err(|error| format!("no signature: {error}"))?;
    let at = signed.unverified().map_err(|error| chain(&error))?.at;
    let then = UnixTime::since_unix_epoch(Duration::from_secs(at));
    let verified = signed.verify(roots, now).or_else(|_| signed.verify(roots, then));
    let (_, intent) = verified.map_err(|error| chain(&error))?;
    if (&intent.app, intent.revision) != (id, app.revision) {
        return Err(format!("it is signed for {}, revision {}", intent.app, intent.revision));
    }
    let removing = matches!(app.phase, Phase::Removing { .. });
    match &intent.wanted {
        Wanted::Removal if removing => Ok(()),
        Wanted::Policy(_) if !removing => match policy_of(&intent) {
            Ok(policy) if policy == *app.policy => Ok(()),
            Ok(_) => Err("another policy is signed".to_owned()),
            Err(fault) => Err(format!("{fault:?}")),
        },
        Wanted::Removal | Wanted::Policy(_) => Err("something else is signed".to_owned()),
    }
}

#[cfg(test)]
#[path = "proofs_test.rs"]
mod proofs_test;
