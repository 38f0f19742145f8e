//! What somebody outside of Cohort sees, and what must never be seen.

use std::collections::BTreeSet;

use cohort_core::Plan;
use cohort_core::ids::{AppId, ServerId};
use cohort_core::phase::Phase;

use super::behaviour::Behaviours;
use super::group::Group;

/// A prober. Every look panics where something is seen that must never be.
#[derive(Debug, Default)]
pub struct Prober {
    /// The most servers that were being changed at once.
    pub most_out: usize,
}

impl Prober {
    /// Looks at every server of a group.
    ///
    /// # Panics
    /// When something is seen that must never happen.
    pub fn look(&mut self, now_ms: u64, group: &Group, behaviours: &Behaviours) {
        for (id, server) in &group.servers {
            for ((app, fence), times) in &server.accepted {
                assert!(*times <= 1, "{now_ms} ms: {app} on {id} was activated twice under {fence:?}");
            }
            for (app, service) in &server.services {
                let runs = service.release.as_ref().filter(|_| service.up);
                assert!(
                    runs.is_none_or(|release| behaviours.knows(release)),
                    "{now_ms} ms: {app} on {id} runs what nobody published"
                );
            }
        }
        let mut out: BTreeSet<&ServerId> = BTreeSet::new();
        let mut max = 0;
        for (app_id, app) in &group.state.apps {
            let policy = app.phase.rollout().map_or(&app.policy, |rollout| &rollout.policy);
            max = max.max(policy.max_unavailable_of(group.state.size()));
            out.extend(group.servers.iter().filter_map(|(id, server)| {
                (!forgiven(group, app_id, id) && server.being_changed(app_id) && took_away(group, id))
                    .then_some(id)
            }));
        }
        self.most_out = self.most_out.max(out.len());
        assert!(
            out.len() <= max as usize,
            "{now_ms} ms: {out:?} of {} are out of service, {max} may be",
            group.state.group
        );
    }

    /// Looks at a plan: what does not move says why.
    ///
    /// # Panics
    /// When something waits without a reason.
    pub fn look_at_plan(&mut self, group: &Group, plan: &Plan) {
        if !plan.commands.is_empty() || !group.proposed.is_empty() {
            return;
        }
        for (id, app) in &group.state.apps {
            assert!(
                plan.waiting.iter().any(|waiting| waiting.app == *id),
                "{}: {id} is {} and waits without a reason: {:?}",
                group.state.group,
                app.phase.name(),
                app.phase,
            );
        }
    }
}

/// Servers that a rollout goes on without, and debts that could not be settled, are told to people
/// and hold up nobody.
fn forgiven(group: &Group, app: &AppId, server: &ServerId) -> bool {
    let app = &group.state.apps[app];
    if let Some(rollout) = app.phase.rollout()
        && rollout.lost.contains(server)
    {
        return true;
    }
    let Some(here) = app.servers.get(server) else { return true };
    let back = matches!(app.phase, Phase::RollingBack { .. });
    here.debt.is_some() && !back && !here.activation.as_ref().is_some_and(|a| a.in_flight())
}

/// Whether the change took a server away that was serving.
fn took_away(group: &Group, server: &ServerId) -> bool {
    group.state.apps.values().filter_map(|app| app.servers.get(server)).any(|here| {
        here.activation.as_ref().is_some_and(|activation| activation.costs)
    })
}
