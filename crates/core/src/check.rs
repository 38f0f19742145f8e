//! Invariants of the state. Checked after every entry in tests and simulation, and when a snapshot
//! is loaded in production; a broken one stops the replica.

use std::collections::BTreeSet;

use crate::ids::AppId;
use crate::phase::Phase;
use crate::state::{
    APPS_MAX, App, FAILURES_KEPT_MAX, GOOD_MAX, HISTORY_MAX, HOLDS_MAX, REJECTED_MAX, REMOVED_MAX,
    REQUESTS_MAX, SERVER_APPS_MAX, SERVERS_MAX, STATE_SCHEMA, State, VERDICTS_DUE_MAX,
};
use crate::trial::CHECK_SETS_MAX;

impl State {
    /// Checks every invariant.
    ///
    /// The limit on servers out of service is not among them: it is enforced when a change is
    /// granted and when it begins, and servers also leave service on their own.
    ///
    /// # Errors
    /// The first broken invariant, as text for the log of the replica that stops.
    pub fn check(&self) -> Result<(), String> {
        if self.schema != STATE_SCHEMA {
            return Err(format!("schema {} instead of {STATE_SCHEMA}", self.schema));
        }
        self.check_bounds()?;
        self.check_members()?;
        self.apps.iter().try_for_each(|(id, app)| self.check_app(id, app))
    }

    fn check_app(&self, id: &AppId, app: &App) -> Result<(), String> {
        let runs_nothing_good =
            matches!(app.phase, Phase::Running { .. }) && app.last_good.is_none();
        let foreign = app
            .phase
            .rollout()
            .is_some_and(|rollout| Some(&rollout.release.platform) != self.platform.as_ref());
        let stranger = app.phase.wave().is_some_and(|(servers, _)| {
            !servers.iter().all(|server| self.servers.contains_key(server))
        });
        let wrong_fence = app.servers.iter().find(|(_, here)| {
            here.activation.as_ref().is_some_and(|activation| {
                activation.fence.generation > app.generation
                    || activation.fence.generation != here.activated
                    || activation.fence.incarnation != self.incarnation
            })
        });
        let broken = if app.policy.app != *id {
            format!("the policy is that of {}", app.policy.app)
        } else if app.record_written > app.record {
            format!("record {} written, but only {} exist", app.record_written, app.record)
        } else if !app.servers.keys().eq(self.servers.keys()) {
            "its servers are not the group's".to_owned()
        } else if app.check_sets.last().is_none_or(|set| set.checks != app.policy.checks) {
            "its checks are not the policy's".to_owned()
        } else if runs_nothing_good {
            "running without a good release".to_owned()
        } else if foreign {
            "rolls out a release for another platform".to_owned()
        } else if stranger {
            "a wave has a server that is not in the group".to_owned()
        } else if let Some((server, _)) = wrong_fence {
            format!("the fence of {server} belongs to another plan")
        } else {
            return Ok(());
        };
        Err(format!("{id}: {broken}"))
    }

    fn check_bounds(&self) -> Result<(), String> {
        let bounds = [
            ("servers", self.servers.len(), SERVERS_MAX),
            ("apps", self.apps.len(), APPS_MAX),
            ("servers times apps", self.servers.len() * self.apps.len(), SERVER_APPS_MAX),
            ("removed apps", self.removed.len(), REMOVED_MAX),
            ("requests", self.requests.len(), REQUESTS_MAX),
        ];
        let per_app = self.apps.values().flat_map(|app| {
            let holds = app.servers.values().map(|server| server.holds.len()).max();
            [
                ("history entries", app.history.len(), HISTORY_MAX),
                ("rejected releases", app.rejected.len(), REJECTED_MAX),
                ("good releases", app.good_before.len(), GOOD_MAX),
                ("held artifacts", holds.unwrap_or(0), HOLDS_MAX),
                ("verdicts to be written", app.verdicts_due.len(), VERDICTS_DUE_MAX),
                ("sets of checks", app.check_sets.len(), CHECK_SETS_MAX),
                (
                    "failures in detail",
                    app.phase.rollout().map_or(0, |rollout| rollout.failures.len()),
                    FAILURES_KEPT_MAX,
                ),
            ]
        });
        match bounds.into_iter().chain(per_app).find(|(_, count, max)| count > max) {
            Some((what, count, max)) => Err(format!("{count} {what}; the limit is {max}")),
            None => Ok(()),
        }
    }

    fn check_members(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for (id, server) in &self.servers {
            if let Some(member) = server.member
                && (member >= self.next_member || !seen.insert(member))
            {
                return Err(format!("{id} carries member {member}, which is not its own"));
            }
        }
        Ok(())
    }
}
