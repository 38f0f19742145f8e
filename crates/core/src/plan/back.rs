//! Going back to the last good release, at once or as a debt.

use std::collections::BTreeSet;

use super::Planner;
use crate::command::Body;
use crate::ids::{AppId, ClockMs};
use crate::orders::Purpose;
use crate::state::{Activation, ActivationStage, App, DEBT_TRIES_MAX, Rollout};
use crate::transitions::owing_roll_back;
use crate::waiting::WaitingOn;

/// How long a debt that failed is left alone before it is tried again, in milliseconds.
const DEBT_RETRY_MS: u64 = 10_000;

impl Planner<'_> {
    pub(super) fn roll_back(
        &mut self,
        id: &AppId,
        app: &App,
        rollout: &Rollout,
        by_person: bool,
        since: ClockMs,
    ) {
        if let Some(reason) = &self.seen.killed
            && !by_person
        {
            self.wait(id, since, WaitingOn::KillSwitch { reason: reason.clone() });
            return;
        }
        let unreachable_ms = rollout.policy.update.unreachable_after.ms;
        let owing = owing_roll_back(app, rollout);
        let mut waiting = Vec::new();
        for server in &owing {
            let silent_ms = self.silent_ms(server);
            if silent_ms > unreachable_ms {
                self.lose(id, app, server);
                continue;
            }
            let here = &app.servers[server];
            let going_back = here
                .activation
                .as_ref()
                .is_some_and(|a| a.in_flight() && a.purpose == Purpose::RollBack);
            if !going_back {
                waiting.push(server.clone());
            }
        }
        self.grants(id, app, &waiting, Purpose::RollBack, since);
        self.steps(id, app, since, &owing);
    }

    /// Servers that owe get `last_good` as soon as they can be reached.
    pub(super) fn debts(&mut self, id: &AppId, app: &App) {
        let Some(good) = &app.last_good else { return };
        let unreachable_ms = app.policy.update.unreachable_after.ms;
        let mut payable = Vec::new();
        for (server, here) in &app.servers {
            let Some(debt) = &here.debt else { continue };
            let silent_ms = self.silent_ms(server);
            if silent_ms > unreachable_ms {
                let takes = |a: &Activation| a.in_flight() && a.costs;
                if here.activation.as_ref().is_some_and(takes) {
                    self.lose(id, app, server);
                }
                let on = WaitingOn::ServerUnreachable { server: server.clone(), for_ms: silent_ms };
                self.wait(id, debt.since, on);
                continue;
            }
            if here.settled_on(Some(good)) && here.in_service {
                // It was away, or was waited for, and has what it owes: nothing is started twice.
                self.propose(Body::FindServer {
                    app: id.clone(),
                    generation: app.generation,
                    server: server.clone(),
                });
                continue;
            }
            match &here.activation {
                Some(activation) if activation.in_flight() && app.wants(activation) => {
                    self.steps(id, app, debt.since, &BTreeSet::from([server.clone()]));
                    continue;
                }
                Some(activation) if activation.open() => {}
                Some(activation) => {
                    let (ActivationStage::Failed { at, .. } | ActivationStage::Undone { at, .. }) =
                        &activation.stage
                    else {
                        continue;
                    };
                    let rest = debt.tries > 0 && self.state.clock.since(*at) < DEBT_RETRY_MS;
                    if debt.tries >= DEBT_TRIES_MAX || rest {
                        let reason = debt.reason.clone();
                        let on = WaitingOn::Debt { server: server.clone(), reason };
                        self.wait(id, debt.since, on);
                        continue;
                    }
                }
                None if debt.tries >= DEBT_TRIES_MAX => {
                    let reason = debt.reason.clone();
                    let on = WaitingOn::Debt { server: server.clone(), reason };
                    self.wait(id, debt.since, on);
                    continue;
                }
                None => {}
            }
            if let Some(reason) = &self.seen.killed {
                let on = WaitingOn::KillSwitch { reason: reason.clone() };
                self.wait(id, debt.since, on);
                continue;
            }
            if here.has(&good.artifact) {
                payable.push(server.clone());
            } else {
                let servers = BTreeSet::from([server.clone()]);
                self.wait(id, debt.since, WaitingOn::Download { servers });
            }
        }
        // One at a time: every grant of a debt is a plan of its own.
        if let Some(first) = payable.first() {
            self.grants(id, app, std::slice::from_ref(first), Purpose::Debt, self.state.clock);
        }
    }
}
