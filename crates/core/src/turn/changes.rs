//! Changes of single servers: granted, lost, found again.

use std::collections::BTreeSet;

use super::{Applied, Turn};
use crate::capacity;
use crate::command::{Event, Planned, Rejection, WhyNot};
use crate::ids::{AppId, Revision, ServerId};
use crate::orders::{Fence, Purpose};
use crate::phase::{Phase, WaveStep};
use crate::reason::DebtReason;
use crate::release::Release;
use crate::state::{Activation, ActivationStage, App, Rollout, State};
use crate::{trial, wave};

impl State {
    /// Checks a step against the whole group: a grant needs capacity, and a server on which no app
    /// is changing. A rollback or a debt may replace a change that is no longer wanted, a wave one
    /// that leads back. Returns whether the step takes a serving server out.
    pub(crate) fn clear(&self, app_id: &AppId, step: &Planned) -> Result<bool, Rejection> {
        let Some(app) = self.apps.get(app_id) else {
            return Err(Rejection::NoApp { app: app_id.clone() });
        };
        if let Planned::TakeChecks { revision, servers } = step {
            return self.clear_checks(app, *revision, servers);
        }
        let Planned::Grant { server, purpose, voters } = step else { return Ok(false) };
        let purpose = *purpose;
        if !wave::spares_majority(self, voters, server) {
            let (state, why) = (app.phase.name(), WhyNot::TooManyVoters);
            return Err(Rejection::NotNow { state, why });
        }
        let busy = self.apps.iter().any(|(id, other)| {
            let here = other.servers.get(server);
            here.and_then(|here| here.in_flight()).is_some_and(|activation| {
                // The release of a wave may be the cure of what the way back cannot repair.
                let gives_way = if purpose == Purpose::Wave {
                    activation.purpose != Purpose::Wave
                } else {
                    !app.wants(activation)
                };
                id != app_id || !gives_way
            })
        });
        if busy {
            return Err(Rejection::Busy { server: server.clone() });
        }
        let costs = capacity::costs(self, app, server, purpose);
        if costs {
            let out = capacity::out_servers(self);
            let max = app.max_unavailable(self.size());
            if !capacity::has_room(&out, max, server) {
                let out = u32::try_from(out.len()).unwrap_or(u32::MAX);
                return Err(Rejection::Capacity { out, max });
            }
        }
        Ok(costs)
    }

    /// Servers take only the policy's checks, having passed them, within `max_unavailable`.
    fn clear_checks(
        &self,
        app: &App,
        revision: Revision,
        servers: &BTreeSet<ServerId>,
    ) -> Result<bool, Rejection> {
        if app.newest_checks().revision != revision {
            let (state, why) = (app.phase.name(), WhyNot::PolicyChanged);
            return Err(Rejection::NotNow { state, why });
        }
        let out = capacity::out_servers(self);
        let (count, max) = (out.len(), app.max_unavailable(self.size()));
        if trial::may_take(self, app, out, servers.iter().cloned()) != *servers {
            return Err(Rejection::Capacity { out: u32::try_from(count).unwrap_or(u32::MAX), max });
        }
        Ok(false)
    }
}

impl Turn<'_> {
    /// Grants a change; `costs` says whether it takes a serving server out.
    pub(crate) fn grant(&mut self, server: &ServerId, purpose: Purpose, costs: bool) -> Applied {
        let release = match self.release_for(server, purpose) {
            Ok(release) => release,
            Err(why) => return self.not_now(why),
        };
        let App { servers, generation, .. } = &mut *self.app;
        let Some(here) = servers.get_mut(server) else {
            return Err(Rejection::NoServer { server: server.clone() });
        };
        if here.activated >= *generation {
            // One activation per server and fence: a second one needs a new plan.
            *generation = generation.next();
        }
        here.activated = *generation;
        here.ignored_hook = None;
        if let Some(debt) = here.debt.as_mut().filter(|_| purpose == Purpose::Debt) {
            debt.tries += 1;
        }
        // The server may have started the change that this one replaces, whose cost still counts.
        let costs = costs || here.activation.as_ref().is_some_and(|a| a.open() && a.costs);
        here.activation = Some(Activation {
            fence: Fence { incarnation: self.incarnation, generation: *generation },
            release,
            before: here.running.clone(),
            purpose,
            costs,
            void: false,
            granted: self.clock,
            stage: ActivationStage::Granted,
        });
        let (app, server, generation) = (self.id.clone(), server.clone(), *generation);
        self.events.push(Event::Granted { app, server, generation, purpose });
        self.progress_forward();
        Ok(())
    }

    /// Takes a grant back. The server may have begun: until it has said that it has not, the change
    /// stays ordered and counts as before.
    pub(crate) fn withdraw(&mut self, server: &ServerId) -> Applied {
        let here = self.app.servers.get_mut(server);
        let granted = here
            .and_then(|here| here.activation.as_mut())
            .filter(|change| change.in_flight() && change.stage == ActivationStage::Granted);
        let Some(change) = granted else { return self.not_now(WhyNot::NothingToWithdraw) };
        change.stage = ActivationStage::Withdrawn;
        let (app, server) = (self.id.clone(), server.clone());
        self.events.push(Event::Withdrawn { app, server });
        Ok(())
    }

    /// The release that a change for this purpose leads to.
    fn release_for(&self, server: &ServerId, purpose: Purpose) -> Result<Option<Release>, WhyNot> {
        let rolling_back = matches!(self.app.phase, Phase::RollingBack { .. });
        match purpose {
            Purpose::Debt => {
                let here = self.app.servers.get(server);
                match here.is_none_or(|here| here.debt.is_some() || here.restart.is_some()) {
                    true => Ok(self.app.last_good.clone()),
                    false => Err(WhyNot::NothingToGrant),
                }
            }
            Purpose::RollBack if rolling_back => Ok(self.app.last_good.clone()),
            Purpose::RollBack => Err(WhyNot::NothingToGrant),
            Purpose::Wave => match (self.app.phase.wave(), self.app.phase.forward()) {
                (Some((servers, step)), Some(rollout)) => {
                    if step == WaveStep::Assigned || !servers.contains(server) {
                        return Err(WhyNot::NotItsTurn);
                    }
                    Ok(Some(rollout.release.clone()))
                }
                (Some(_) | None, _) => Err(WhyNot::NothingToGrant),
            },
        }
    }

    /// Declares a server lost: the rollout continues without it, its change is void, and it is in
    /// debt unless it serves the release already.
    pub(crate) fn lose(&mut self, server: &ServerId, silent_ms: u64) -> Applied {
        let App { servers, phase, .. } = &mut *self.app;
        let Some(here) = servers.get_mut(server) else {
            return Err(Rejection::NoServer { server: server.clone() });
        };
        // It has moved: the rollout finds it again, or leaves it behind.
        let moved = phase.forward().is_some_and(|rollout| here.serves(&rollout.release));
        let newly = phase.rollout_mut().is_some_and(|rollout| {
            let newly = rollout.lost.insert(server.clone());
            if newly {
                rollout.surroundings_failures += 1;
                rollout.progress = self.clock;
            }
            newly
        });
        match here.activation.as_mut().filter(|activation| activation.in_flight()) {
            Some(activation) => {
                activation.void = true;
                here.unsure = true;
            }
            None if newly => {}
            None => return self.not_now(WhyNot::AlreadyLost),
        }
        if !moved {
            here.owe(self.clock, DebtReason::Silent { for_ms: silent_ms });
        }
        let (app, server) = (self.id.clone(), server.clone());
        self.events.push(Event::ServerLost { app, server, silent_ms });
        Ok(())
    }

    /// A server of the wave cannot download the release: its environment is at fault, not the
    /// release. It has no debt: what it runs is good.
    pub(crate) fn leave_out(&mut self, server: &ServerId) -> Applied {
        let App { servers, phase, .. } = &mut *self.app;
        let fetches = phase.wave().is_some_and(|(wave, _)| wave.contains(server));
        let has = |rollout: &Rollout| {
            servers.get(server).is_none_or(|here| here.has(&rollout.release.artifact))
        };
        let Some(rollout) = phase.rollout_mut().filter(|rollout| fetches && !has(rollout)) else {
            return self.not_now(WhyNot::NotItsTurn);
        };
        if !rollout.lost.insert(server.clone()) {
            return self.not_now(WhyNot::AlreadyLost);
        }
        rollout.unfetched.insert(server.clone());
        rollout.surroundings_failures += 1;
        rollout.progress = self.clock;
        let (app, server) = (self.id.clone(), server.clone());
        self.events.push(Event::ServerLeftOut { app, server });
        Ok(())
    }

    /// A lost server is back, or a server in debt is on the good release: clears its debt.
    pub(crate) fn find(&mut self, server: &ServerId) -> Applied {
        if let Some(rollout) = self.app.phase.rollout_mut() {
            rollout.lost.remove(server);
            rollout.unfetched.remove(server);
        }
        let App { servers, last_good, .. } = &mut *self.app;
        if let Some(here) = servers.get_mut(server)
            && !here.unsure
            && here.settled_on(last_good.as_ref())
        {
            here.debt = None;
        }
        Ok(())
    }
}
