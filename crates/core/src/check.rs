//! What must always hold. Checked after every entry in tests and simulation, at load in
//! production; a broken invariant stops the replica.

use std::collections::BTreeSet;

use crate::phase::Phase;
use crate::state::{
    APPS_MAX, GOOD_MAX, HISTORY_MAX, HOLDS_MAX, REJECTED_MAX, REQUESTS_MAX, SERVERS_MAX, State,
};

impl State {
    /// Checks every invariant.
    ///
    /// That no more servers are taken out of service than allowed is not among them: it holds
    /// where a change is granted, by the policy of that moment.
    ///
    /// # Errors
    /// The first one that is broken, in words.
    pub fn check(&self) -> Result<(), String> {
        self.check_bounds()?;
        self.check_members()?;
        for (id, app) in &self.apps {
            if app.policy.app != *id {
                return Err(format!("{id}: the policy is that of {}", app.policy.app));
            }
            if app.record_written > app.record {
                return Err(format!("{id}: the registry has more records than there are"));
            }
            if !app.servers.keys().eq(self.servers.keys()) {
                return Err(format!("{id}: its servers are not the group's"));
            }
            if matches!(app.phase, Phase::Running { .. }) && app.last_good.is_none() {
                return Err(format!("{id}: runs, but nothing was ever good"));
            }
            if let Some(rollout) = app.phase.rollout()
                && Some(&rollout.release.platform) != self.platform.as_ref()
            {
                return Err(format!("{id}: rolls out a release for another platform"));
            }
            if let Phase::Wave { servers, .. } = &app.phase
                && !servers.iter().all(|server| self.servers.contains_key(server))
            {
                return Err(format!("{id}: a wave holds a server that is not in the group"));
            }
            for (server, here) in &app.servers {
                let Some(activation) = &here.activation else { continue };
                if activation.fence.generation > app.generation
                    || activation.fence.generation != here.activated
                    || activation.fence.incarnation != self.incarnation
                {
                    return Err(format!("{id}: the fence of {server} is not of this plan"));
                }
            }
        }
        Ok(())
    }

    fn check_bounds(&self) -> Result<(), String> {
        let bounds = [
            ("servers", self.servers.len(), SERVERS_MAX),
            ("apps", self.apps.len(), APPS_MAX),
            ("requests", self.requests.len(), REQUESTS_MAX),
        ];
        let per_app = self.apps.values().flat_map(|app| {
            let holds = app.servers.values().map(|server| server.holds.len()).max();
            [
                ("history entries", app.history.len(), HISTORY_MAX),
                ("rejected releases", app.rejected.len(), REJECTED_MAX),
                ("good releases", app.good_before.len(), GOOD_MAX),
                ("held artifacts", holds.unwrap_or(0), HOLDS_MAX),
            ]
        });
        match bounds.into_iter().chain(per_app).find(|(_, count, max)| count > max) {
            Some((what, count, max)) => Err(format!("{count} {what}, {max} at the most")),
            None => Ok(()),
        }
    }

    fn check_members(&self) -> Result<(), String> {
        let mut seen = BTreeSet::new();
        for (id, server) in &self.servers {
            if let Some(member) = server.member
                && (member >= self.next_member || !seen.insert(member))
            {
                return Err(format!("{id} carries member {member}, which is not its alone"));
            }
        }
        Ok(())
    }
}
