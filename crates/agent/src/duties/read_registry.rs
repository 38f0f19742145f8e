//! What the leader reads in the registry: policies, groups, verdicts and kill switches.

use std::sync::Arc;
use std::time::Duration;

use cohort_base::chain::chain;
use cohort_base::retry::Schedule;
use cohort_consensus::Term;
use cohort_core::gate::{ForeignVerdict, GroupInfo, RegistryView};
use cohort_core::policy::Policy;
use cohort_core::reason::Reason;
use cohort_registry::{Registry, RegistryError, Selector, WatchRequest, keys, typed};
use cohort_server::member::Input;
use cohort_wire::http::Call;
use cohort_wire::hub::KILL as HUB_KILL;
use cohort_wire::kill::SignedKill;

use super::{still_leads, until_deposed, until_leading};
use crate::shared::{MemberHandle, Shared};

/// How long one watch of the registry is held, in milliseconds; a hub that hangs is noticed then.
const WATCH_MS: u64 = 10_000;
/// How long the hub may take to accept a kill register.
const KILL_DEADLINE: Duration = Duration::from_secs(5);
/// Pauses while the registry does not answer. Only leaders ask: shorter than for a whole fleet.
pub(super) const RETRY: Schedule =
    Schedule::new(Duration::from_millis(250), Duration::from_secs(5));

/// Keeps the member's view of the registry up to date while it leads.
pub(super) async fn run(shared: Arc<Shared>, mut handle: MemberHandle) {
    let mut pauses = RETRY.pauses();
    while let Some(term) = until_leading(&mut handle).await {
        match follow(&shared, &handle, term).await {
            Ok(()) => pauses.reset(),
            Err(error) => {
                tracing::debug!(error = chain(&error), "the registry does not answer");
                if !handle.inputs.put(Input::Registry(None)).await {
                    return;
                }
                tokio::time::sleep(pauses.next_pause()).await;
            }
        }
    }
}

/// Reads everything, then again after every change that matters, for as long as this member leads.
async fn follow(
    shared: &Arc<Shared>,
    handle: &MemberHandle,
    term: Term,
) -> Result<(), RegistryError> {
    let registry = &*shared.registry;
    let mut kill = shared.kill.subscribe();
    while still_leads(handle, term) {
        kill.mark_unchanged();
        let (_, revision) = typed::list(registry, keys::SWITCHES).await?;
        take_kill_switches(shared).await?;
        carry_kill(shared).await;
        let view = read_view(registry).await?;
        if !handle.inputs.put(Input::Registry(Some(view))).await {
            return Ok(());
        }
        tokio::select! {
            changed = until_change(registry, revision + 1) => changed?,
            // The next leadership reads everything itself.
            () = until_deposed(handle, term) => {}
            // Given to an agent: the hub hears of it from the leader.
            _ = kill.changed() => {}
        }
    }
    Ok(())
}

/// Waits for a change that a leader reads everything again for.
async fn until_change(
    registry: &dyn Registry,
    mut from_revision: u64,
) -> Result<(), RegistryError> {
    loop {
        let select = Selector::Prefix(keys::ROOT.to_owned());
        let request = WatchRequest { select, from_revision, wait_ms: WATCH_MS };
        let answer = match registry.watch(request).await {
            Err(RegistryError::Compacted { .. }) => return Ok(()),
            answer => answer?,
        };
        if answer.events.iter().any(|event| matters(event.key())) {
            return Ok(());
        }
        from_revision = answer.revision + 1;
    }
}

/// Whether a leader decides anything by this record. Records of progress, written by the hundred,
/// do not matter.
fn matters(key: &str) -> bool {
    [keys::POLICIES, keys::VERDICTS, keys::SWITCHES].iter().any(|root| key.starts_with(root))
        || key.ends_with("/info")
}

async fn take_kill_switches(shared: &Shared) -> Result<(), RegistryError> {
    for (_, text) in typed::kill_switches(&*shared.registry).await? {
        match serde_json::from_str::<SignedKill>(&text) {
            Ok(register) => shared.latch(vec![register]).await,
            Err(error) => tracing::warn!(%error, "unreadable kill register in the registry"),
        }
    }
    Ok(())
}

/// Carries kill registers that were given to an agent to the hub: what counts there as well is
/// the operator's signature in them.
async fn carry_kill(shared: &Shared) {
    for register in shared.kill.signed() {
        for target in &shared.hub {
            let call = Call::post(HUB_KILL, &register).deadline(KILL_DEADLINE);
            match shared.client.call(target, call.idempotent()).await {
                Ok(_) => break,
                Err(error) => {
                    tracing::debug!(error = chain(&error), "kill register not carried to the hub");
                }
            }
        }
    }
}

async fn read_view(registry: &dyn Registry) -> Result<RegistryView, RegistryError> {
    let mut view = RegistryView::default();
    for policy in typed::policies(registry).await? {
        let app = policy.record.app.clone();
        match serde_json::from_value::<Policy>(policy.record.policy) {
            Ok(parsed) if parsed.app == app => {
                view.policies.insert(app, (policy.revision, parsed));
            }
            Ok(parsed) => tracing::warn!(%app, names = %parsed.app, "ignoring a misplaced policy"),
            Err(error) => tracing::warn!(%app, %error, "this version cannot read the policy"),
        }
    }
    for info in typed::group_infos(registry).await? {
        view.groups.insert(info.group, GroupInfo { labels: info.labels, platform: info.platform });
    }
    let (pairs, _) = typed::list(registry, keys::VERDICTS).await?;
    for pair in &pairs {
        if let Some(found) = typed::decode_verdict(pair)? {
            view.verdicts.push(ForeignVerdict {
                group: found.group,
                app: found.app,
                version: found.version,
                platform: found.platform,
                bad: found.record.bad.map(Reason::shortened),
            });
        }
    }
    Ok(view)
}

#[cfg(test)]
mod read_registry_test {
    use cohort_core::ids::{AppId, GroupId};
    use cohort_registry::keys;

    use super::matters;

    #[test]
    fn progress_of_other_groups_is_no_reason_to_read_everything_again() {
        let (app, group) = (AppId::new("web").unwrap(), GroupId::new("intel.a").unwrap());
        assert!(matters(&keys::policy(&app)));
        assert!(matters(&keys::group_info(&group)));
        assert!(!matters(&keys::group_record(&group, &app)));
        assert!(!matters(&keys::members(&group)));
    }
}
