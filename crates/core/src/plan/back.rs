//! Going back to the last good release: the whole group, or one server that owes it.

use std::collections::BTreeSet;

use super::Planner;
use crate::command::Planned;
use crate::ids::{ClockMs, ServerId};
use crate::orders::Purpose;
use crate::phase::Phase;
use crate::reason::DebtReason;
use crate::release::Release;
use crate::report::Blame;
use crate::state::{ActivationStage, DEBT_TRIES_MAX, Debt, Rollout, ServerApp};
use crate::waiting::WaitingOn;

/// Pause between two attempts to pay a debt, in milliseconds. 10 s: longer than a slow service
/// takes to start, short compared to an operator's response.
const DEBT_RETRY_MS: u64 = 10_000;

/// Pause between two further attempts, in milliseconds, where the server's surroundings were at
/// fault: a taken port or a full disk is mended without a word to the group. 1 min: soon after the
/// repair, and rare enough for a log.
const SURROUNDINGS_RETRY_MS: u64 = 60_000;

/// A debt that is left alone for now.
pub(super) struct Rest {
    /// When it is tried again; `None`: once an operator says so.
    again_ms: Option<u64>,
}

impl Planner<'_> {
    pub(super) fn roll_back(&mut self, rollout: &Rollout, by_person: bool, since: ClockMs) {
        if !by_person && self.is_killed(since) {
            return;
        }
        let owing: BTreeSet<ServerId> = self.app.to_roll_back(rollout).cloned().collect();
        if self.relieves(rollout, &owing) {
            return;
        }
        let mut waiting = Vec::new();
        for server in &owing {
            let change = self.app.servers[server].in_flight();
            if self.is_silent(server) {
                self.lose(server);
            } else if change.is_none_or(|change| change.purpose != Purpose::RollBack) {
                waiting.push(server.clone());
            }
        }
        // What the rollback goes on without is repaired meanwhile: others may wait for it.
        if self.app.last_good.is_some() {
            self.debts(|server| rollout.lost.contains(server));
        } else {
            self.find_lost(rollout);
        }
        self.grants(&waiting, Purpose::RollBack, since);
        self.steps(since, &owing);
    }

    /// Every server stops the removed app; then the registry forgets it.
    pub(super) fn remove(&mut self, since: ClockMs, stopped: bool) {
        self.debts(|_| true);
        let unheard = self.app.servers.iter().filter(|(_, here)| !here.found);
        let (silent, servers): (Vec<ServerId>, Vec<ServerId>) =
            unheard.map(|(id, _)| id.clone()).partition(|server| self.is_silent(server));
        for server in silent {
            let for_ms = self.silent_ms(&server);
            self.wait(since, WaitingOn::ServerUnreachable { server, for_ms });
        }
        if !servers.is_empty() {
            self.wait(since, WaitingOn::FirstReports { servers });
        }
        if stopped {
            self.wait_for_record(since);
        }
    }

    /// Servers in debt get `last_good` as soon as they are reachable. If no release was ever good,
    /// they stop the rejected one.
    pub(super) fn debts(&mut self, of: impl Fn(&ServerId) -> bool) {
        let app = self.app;
        let good = app.last_good.as_ref();
        let concerned = |here: &ServerApp| match (&app.phase, good) {
            (_, Some(_)) => true,
            (Phase::Removing { .. }, None) => true,
            (Phase::Held { rejected, .. }, None) => {
                here.activation.is_some() || here.running.as_ref().is_none_or(|it| it == rejected)
            }
            (_, None) => false,
        };
        let mut payable = Vec::new();
        for (server, here) in &app.servers {
            if let Some(debt) = here.debt.as_ref().filter(|_| of(server) && concerned(here))
                && self.is_payable(server, here, debt, good)
            {
                payable.push(server.clone());
            }
        }
        // Those that cost nothing first: others may wait for them.
        payable.retain(|server| !self.waits_for_another_app(server));
        payable.sort_by_cached_key(|server| self.costs(server, Purpose::Debt));
        // One at a time: each grant of a debt raises the generation.
        payable.truncate(1);
        self.grants(&payable, Purpose::Debt, self.state.clock);
    }

    /// Whether a server can pay its debt now; if not, proposes something or waits.
    fn is_payable(
        &mut self,
        server: &ServerId,
        here: &ServerApp,
        debt: &Debt,
        good: Option<&Release>,
    ) -> bool {
        if self.is_silent(server) {
            let for_ms = self.silent_ms(server);
            if here.in_flight().is_some_and(|change| change.costs) {
                self.lose(server);
            }
            self.wait(debt.since, WaitingOn::ServerUnreachable { server: server.clone(), for_ms });
        } else if !here.unsure && good.map_or(here.settled_on(None), |good| here.serves(good)) {
            // Already on the good release: clear its debt.
            self.propose(Planned::FindServer { server: server.clone() });
        } else if here.in_flight().is_some_and(|change| self.app.wants(change)) {
            self.steps(debt.since, &BTreeSet::from([server.clone()]));
        } else if let Some(rest) = self.rest(here, debt) {
            let (server, reason) = (server.clone(), debt.reason.clone());
            let again_ms = rest.again_ms;
            let removing = matches!(self.app.phase, Phase::Removing { .. });
            self.wait(
                debt.since,
                match removing {
                    true => WaitingOn::NotStopped { server, reason },
                    false => WaitingOn::Debt { server, reason, again_ms },
                },
            );
        } else if !self.is_killed(debt.since) {
            if good.is_none_or(|good| here.has(&good.artifact)) {
                return true;
            }
            self.wait_for_good(server, debt.since, good);
        }
        false
    }

    /// Servers that an operator wants to start their release again, as many at a time as
    /// `max_unavailable` allows. One that failed holds the others.
    pub(super) fn restarts(&mut self) {
        let app = self.app;
        let wanted = app.servers.iter().filter_map(|(id, here)| Some((id, here, here.restart?)));
        let Some(since) = wanted.clone().map(|(.., since)| since).min() else { return };
        let failed = app.servers.values().filter_map(|here| here.debt.as_ref());
        let mut failed = failed.filter(|debt| matches!(debt.reason, DebtReason::Failed { .. }));
        if failed.any(|debt| debt.since >= since) || self.is_killed(since) {
            return;
        }
        let mut ready = Vec::new();
        for (server, here, _) in wanted {
            if self.is_silent(server) {
                let for_ms = self.silent_ms(server);
                self.wait(since, WaitingOn::ServerUnreachable { server: server.clone(), for_ms });
            } else if here.in_flight().is_some() {
                self.steps(since, &BTreeSet::from([server.clone()]));
            } else if here.debt.is_none() && !self.waits_for_another_app(server) {
                ready.push(server.clone());
            }
        }
        // One at a time, as debts are.
        ready.truncate(1);
        self.grants(&ready, Purpose::Debt, since);
    }

    /// A server in debt is downloading the good release; if that takes long, it needs help.
    fn wait_for_good(&mut self, server: &ServerId, since: ClockMs, good: Option<&Release>) {
        let within_ms = self.app.policy_in_force().update.progress_deadline.ms;
        let late = good.filter(|_| self.state.clock.since(since) > within_ms);
        let on = match late.map(|good| good.version.clone()) {
            Some(version) => WaitingOn::NotDownloaded { version, servers: vec![server.clone()] },
            None => WaitingOn::Download { servers: BTreeSet::from([server.clone()]) },
        };
        self.wait(since, on);
    }

    /// Why to leave the debt alone for now, if so: the last try just failed, or no more are left.
    pub(super) fn rest(&self, here: &ServerApp, debt: &Debt) -> Option<Rest> {
        let (at, blame) = match here.activation.as_ref().map(|change| &change.stage) {
            Some(ActivationStage::Failed { at, blame, .. }) => (*at, *blame),
            Some(ActivationStage::Undone { at, .. }) => (*at, Blame::Release),
            Some(_) => return None,
            None => return (debt.tries >= DEBT_TRIES_MAX).then_some(Rest { again_ms: None }),
        };
        let pause_ms = match (debt.tries, blame) {
            (0, _) => return None,
            (1..DEBT_TRIES_MAX, _) => DEBT_RETRY_MS,
            (_, Blame::Surroundings) => SURROUNDINGS_RETRY_MS,
            (_, Blame::Release) => return Some(Rest { again_ms: None }),
        };
        let left_ms = pause_ms.saturating_sub(self.state.clock.since(at));
        (left_ms > 0).then_some(Rest { again_ms: Some(left_ms) })
    }

    /// Whether the kill switch is on; if so, waits for it.
    pub(super) fn is_killed(&mut self, since: ClockMs) -> bool {
        let Some(reason) = &self.seen.killed else { return false };
        self.wait(since, WaitingOn::KillSwitch { reason: reason.clone() });
        true
    }
}
