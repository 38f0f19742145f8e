//! What the hub has of apps' policies, and which operator's signature proves it.

use std::slice::from_ref;

use cohort_base::chain;
use cohort_core::ids::{AppId, Revision};
use cohort_core::policy::Policy;
use cohort_identity::{CertificateDer, Identity, UnixTime, sha256_hex};
use cohort_registry::fleet::Fleet;
use cohort_wire::agent::REVOCATIONS;
use cohort_wire::http::Call;
use cohort_wire::intent::{AppIntent, SignedIntent, Wanted};
use cohort_wire::revocation::{RevocationsAnswer, RevocationsExchange};
use serde::Serialize;
use serde_json::Value;

use crate::connect::Hub;
use crate::failure::{Failure, OrFail as _};

/// The highest revision of a registry that is believed. A hub that claims a higher one would use up
/// the numbers, so that no later policy could follow.
const REVISION_MAX: u64 = 1 << 62;

/// An app's policy on the hub.
#[derive(Debug, Serialize)]
pub(crate) struct KnownPolicy {
    pub(crate) app: AppId,
    pub(crate) revision: Revision,
    /// With the keys of the policy file.
    pub(crate) policy: Value,
    /// The operator who signed it.
    pub(crate) by: String,
    /// Unix seconds by that operator's clock.
    pub(crate) at: u64,
    /// Why no signature proves it; no group will use it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) unproven: Option<String>,
}

impl KnownPolicy {
    /// The policy of an app, if the hub has one.
    pub(crate) fn in_fleet(
        fleet: &Fleet,
        app: &AppId,
        identity: &Identity,
    ) -> Result<Option<Self>, Failure> {
        let Some(signed) = fleet.policies.get(app) else { return Ok(None) };
        let (by, unproven, intent) = match signed.verify(identity.roots(), UnixTime::now()) {
            Ok((by, intent)) => (by.to_string(), None, intent),
            Err(error) => {
                let intent = signed.unverified().or_fail("policy")?;
                ("nobody".to_owned(), Some(chain(&error)), intent)
            }
        };
        let AppIntent { app: of, revision, wanted, at } = intent;
        let Wanted::Policy(policy) = wanted else { return Ok(None) };
        let other = (of != *app).then(|| format!("it is signed for {of}"));
        Ok(Some(KnownPolicy { app: of, revision, policy, by, at, unproven: unproven.or(other) }))
    }

    /// The policy as a file that `apply` accepts, with every default spelled out.
    pub(crate) fn as_file(&self) -> Result<String, Failure> {
        let policy: Policy = serde_json::from_value(self.policy.clone()).or_fail("policy")?;
        let text = toml::to_string(&policy).or_fail("policy")?;
        let unproven = self.unproven.as_ref().map(|why| {
            format!("# no group uses this: {why}\n# to sign it: cohort app apply -f FILE\n")
        });
        let unproven = unproven.unwrap_or_default();
        Ok(format!("# revision {}, by {}\n{unproven}{text}\n", self.revision, self.by))
    }
}

/// Whether a signature counts, and will: its author is not revoked, and its certificate is of the
/// authority that issues now, not of one that is being replaced. The hub's word on who is revoked
/// suffices: the worst that it does is that this operator signs again.
pub(crate) async fn lasts(
    hub: &Hub,
    identity: &Identity,
    signed: &SignedIntent,
) -> Result<bool, Failure> {
    let issuer = identity.issuer();
    let is_issuer = |root: &&CertificateDer<'_>| Some(sha256_hex(root)) == issuer;
    let own = identity.roots().iter().find(is_issuer);
    if own.is_some_and(|root| signed.verify(from_ref(root), UnixTime::now()).is_err()) {
        return Ok(false);
    }
    let call = Call::post(REVOCATIONS, &RevocationsExchange::default()).idempotent();
    let known: RevocationsAnswer = hub.call(call).await?;
    Ok(signed.0.certified().is_some_and(|author| {
        let key = format!("{}/{}", author.peer.role.as_str(), author.peer.name);
        known.has.get(&key).is_none_or(|(at, _)| author.not_before.as_secs() > *at)
    }))
}

/// Signs what the operator wants of an app, after everything that the hub knows.
pub(crate) fn sign(
    identity: &Identity,
    fleet: &Fleet,
    app: &AppId,
    wanted: Wanted,
) -> Result<SignedIntent, Failure> {
    let now = UnixTime::now();
    // Also what is not proven is passed, so that the group that has seen it takes this.
    let known = [&fleet.policies, &fleet.removed].into_iter().filter_map(|of| of.get(app));
    let known = known.filter_map(|signed| Some(signed.verify(identity.roots(), now).ok()?.1));
    let known = known.map(|intent| intent.revision.0).max().unwrap_or(0);
    let revision = Revision(known.max(fleet.revision.min(REVISION_MAX)) + 1);
    let intent = AppIntent { app: app.clone(), revision, wanted, at: now.as_secs() };
    SignedIntent::sign(identity, &intent).or_fail("policy")
}
