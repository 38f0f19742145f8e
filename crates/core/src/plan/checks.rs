//! Changed checks: which servers take them now, and which do not pass them.

use std::collections::BTreeSet;

use super::Planner;
use crate::command::Planned;
use crate::ids::ServerId;
use crate::trial::{self, FALLS_MAX, Trial, TrialResult};
use crate::waiting::WaitingOn;

impl Planner<'_> {
    /// Servers that pass changed checks take them, as many at a time as `max_unavailable` leaves
    /// room for; under the kill switch none does.
    pub(super) fn checks(&mut self) {
        let app = self.app;
        let trying: Vec<&ServerId> = app
            .servers
            .iter()
            .filter(|(_, here)| app.on_trial(here).is_some())
            .map(|(id, _)| id)
            .collect();
        if trying.is_empty() {
            return;
        }
        if self.is_killed(self.state.clock) {
            return;
        }
        let ready = trying.iter().map(|server| (*server).clone());
        let servers = trial::may_take(self.state, app, self.round.used.clone(), ready);
        self.round.used.extend(servers.iter().cloned());
        let (mut failing, mut text) = (Vec::new(), String::new());
        let (mut flapping, mut left) = (Vec::new(), BTreeSet::new());
        for server in trying {
            match app.servers[server].trial.as_ref() {
                Some(Trial { falls: FALLS_MAX.., .. }) => flapping.push(server.clone()),
                Some(Trial { result: TrialResult::Fails { text: why }, .. }) => {
                    if failing.is_empty() {
                        text.clone_from(why);
                    }
                    failing.push(server.clone());
                }
                Some(Trial { result: TrialResult::Passes | TrialResult::Taken { .. }, .. })
                | None => {
                    left.insert(server.clone());
                }
            }
        }
        let revision = app.newest_checks().revision;
        if !servers.is_empty() {
            self.propose(Planned::TakeChecks { revision, servers });
        }
        if !failing.is_empty() {
            self.wait(self.state.clock, WaitingOn::ChecksFail { servers: failing, text });
        }
        if !flapping.is_empty() {
            self.wait(self.state.clock, WaitingOn::ChecksFlap { servers: flapping });
        }
        if !left.is_empty() {
            self.wait(self.state.clock, WaitingOn::ChecksTried { servers: left });
        }
    }
}
