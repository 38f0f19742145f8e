//! Which policies in the group's log an operator signed. A leader could write others; members give
//! no orders by them, and the leader's orders alone count for nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use cohort_base::chain;
use cohort_core::State;
use cohort_core::ids::AppId;
use cohort_core::phase::Phase;
use cohort_core::policy::{Policy, Proof};
use cohort_core::shared::Shared;
use cohort_core::state::App;
use cohort_identity::{CertificateDer, UnixTime};
use cohort_wire::intent::{AppIntent, SignedIntent, Wanted};
use parking_lot::Mutex;

/// What is kept of a signed intent in the log.
///
/// # Panics
/// Never: a statement has texts only.
pub(crate) fn proof_of(signed: &SignedIntent) -> Proof {
    let text = serde_json::to_string(signed).expect("a statement has texts only");
    Proof(text.into())
}

/// The policy in an intent, by the rules of this version.
///
/// # Errors
/// Why it is none.
pub(crate) fn policy_of(intent: &AppIntent) -> Result<Policy, String> {
    let Wanted::Policy(policy) = &intent.wanted else {
        return Err("it is signed as a removal".to_owned());
    };
    let policy: Policy = serde_json::from_value(policy.clone()).map_err(|error| chain(&error))?;
    if policy.app != intent.app {
        return Err(format!("it is a policy of {}", policy.app));
    }
    policy.validate()?;
    Ok(policy)
}

/// What the log has of an app, and whether an operator signed that.
#[derive(Debug)]
struct Verified {
    proof: Proof,
    policy: Shared<Policy>,
    removing: bool,
    proven: bool,
}

/// What was verified here.
#[derive(Debug, Default)]
pub(crate) struct Proofs {
    apps: Mutex<BTreeMap<AppId, Verified>>,
}

impl Proofs {
    /// The apps that the log has without an operator's word: a server gets no orders for them, and
    /// leaves them as they are. Each is verified once.
    pub(crate) fn unproven(
        &self,
        state: &State,
        roots: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> BTreeSet<AppId> {
        let mut apps = self.apps.lock();
        apps.retain(|id, _| state.apps.contains_key(id));
        for (id, app) in &state.apps {
            let removing = matches!(app.phase, Phase::Removing { .. });
            let (proof, policy) = (app.proof.clone(), app.policy.clone());
            let known = apps.get(id).is_some_and(|it| {
                (&it.proof, &it.policy, it.removing) == (&proof, &policy, removing)
            });
            if known {
                continue;
            }
            let verified = verify(id, app, roots, now);
            if let Err(why) = &verified {
                let (group, revision) = (&state.group, app.revision);
                tracing::error!(
                    %group, app = %id, %revision, why,
                    "no operator signed what the group's log has of an app: its servers get no \
                     orders for it; the leader may be hostile"
                );
            }
            let proven = verified.is_ok();
            apps.insert(id.clone(), Verified { proof, policy, removing, proven });
        }
        apps.iter().filter(|(_, it)| !it.proven).map(|(id, _)| id.clone()).collect()
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
            Err(why) => Err(why),
        },
        Wanted::Removal | Wanted::Policy(_) => Err("something else is signed".to_owned()),
    }
}

#[cfg(test)]
#[path = "proofs_test.rs"]
mod proofs_test;
