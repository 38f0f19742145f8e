//! Operators' decisions.

use std::collections::BTreeSet;

use super::{Applied, Turn};
use crate::command::{Rejection, WhyNot};
use crate::ids::{GroupId, Revision, ServerId};
use crate::phase::Phase;
use crate::policy::Proof;
use crate::reason::{DebtReason, PausedBy, Reason};
use crate::release::Rollback;
use crate::state::{App, OVERRULED_MAX, Pause, Rollout};

impl Turn<'_> {
    /// The rollout going forward, under a new generation: earlier plans are now stale.
    fn replan(&mut self) -> Option<&mut Rollout> {
        self.app.phase.forward()?;
        self.app.generation = self.app.generation.next();
        self.app.record += 1;
        self.app.phase.rollout_mut()
    }

    /// Holds a rollout in progress, and keeps the next one from starting: whoever moves a channel
    /// does not end the pause of another person.
    pub(crate) fn pause(&mut self, reason: &str, for_ms: Option<u64>) -> Applied {
        if matches!(self.app.phase, Phase::Removing { .. }) {
            return self.not_now(WhyNot::BeingRemoved);
        }
        let by = PausedBy::Person { name: self.actor.to_owned(), text: reason.to_owned() };
        let until = for_ms.map(|for_ms| self.clock.plus(for_ms));
        self.app.pause = Some(Pause { by, since: self.clock, until });
        if let Some(rollout) = self.replan() {
            rollout.despite_pause = false;
        }
        Ok(())
    }

    /// Another group found the release bad. No effect if the rollout is already paused, or if an
    /// operator overruled that group.
    pub(crate) fn pause_for_verdict(&mut self, group: &GroupId, reason: &Reason) -> Applied {
        let by = PausedBy::Verdict { group: group.clone(), reason: reason.clone() };
        let pause = Pause { by, since: self.clock, until: None };
        match self.replan() {
            Some(rollout) if rollout.overruled.contains(group) => {}
            Some(rollout) => {
                rollout.despite_pause = false;
                self.app.pause.get_or_insert(pause);
            }
            None => return self.not_now(WhyNot::NoRollout),
        }
        Ok(())
    }

    /// Continues a paused rollout, overruling the verdict that paused it.
    pub(crate) fn resume(&mut self) -> Applied {
        let Some(pause) = self.app.pause.take() else {
            return self.not_now(WhyNot::NotPaused);
        };
        if let Some(rollout) = self.replan()
            && let PausedBy::Verdict { group, .. } = pause.by
        {
            rollout.overruled.insert(group);
            if rollout.overruled.len() > OVERRULED_MAX {
                rollout.overruled.pop_first();
            }
        }
        self.progress();
        Ok(())
    }

    /// The time of a pause is over.
    pub(crate) fn end_pause(&mut self) -> Applied {
        let until = self.app.pause.as_ref().and_then(|pause| pause.until);
        match until {
            Some(until) if until <= self.clock => self.resume(),
            Some(_) | None => self.not_now(WhyNot::NotPaused),
        }
    }

    pub(crate) fn approve(&mut self) -> Applied {
        match self.app.phase.rollout_mut() {
            Some(rollout) if rollout.policy.update.approve_after_wave > 0 => {
                rollout.approved = true;
            }
            Some(_) | None => return self.not_now(WhyNot::NoApprovalNeeded),
        }
        self.progress();
        Ok(())
    }

    /// Rolls back now, or lets a rollback in progress continue under the kill switch.
    pub(crate) fn abort(&mut self, reason: &str) -> Applied {
        let by = self.actor.to_owned();
        self.fail(Reason::Aborted { by, text: reason.to_owned() }, true)
    }

    /// Allows another try of every rejected release, of debts and of changed checks without tries
    /// left. Only the release on the channel is tried.
    pub(crate) fn retry(&mut self) -> Applied {
        let app = &mut *self.app;
        let mut did = false;
        for debt in app.servers.values_mut().filter_map(|here| here.debt.as_mut()) {
            did |= debt.tries > 0;
            debt.tries = 0;
        }
        for trial in app.servers.values_mut().filter_map(|here| here.trial.as_mut()) {
            did |= trial.falls > 0;
            trial.falls = 0;
        }
        did |= !app.rejected.is_empty() || matches!(app.phase, Phase::Held { .. });
        app.rejected.clear();
        if !did {
            return self.not_now(WhyNot::NothingToRetry);
        }
        app.generation = app.generation.next();
        Ok(())
    }

    /// any state ─► removing: the servers stop the app, as many at a time as `max_unavailable`
    /// allows. Without effect if a policy was written after the removal.
    pub(crate) fn remove(&mut self, revision: Revision, proof: &Proof) -> Applied {
        let app = &mut *self.app;
        if revision <= app.revision {
            return self.not_now(WhyNot::PolicyChanged);
        }
        app.revision = revision;
        app.proof = proof.clone();
        if matches!(app.phase, Phase::Removing { .. }) {
            return Ok(());
        }
        app.generation = app.generation.next();
        app.last_good = None;
        app.good_before.clear();
        app.rejected.clear();
        app.verdicts_due.clear();
        app.pause = None;
        for here in app.servers.values_mut() {
            here.forget_ended();
            (here.debt, here.restart) = (None, None);
            if here.running.is_some() || here.activation.is_some() {
                here.owe(self.clock, DebtReason::Removed);
            }
        }
        self.enter(Phase::Removing { since: self.clock, stopped: false });
        Ok(())
    }

    /// Rolls out the good release before the current one, and rejects the current one.
    pub(crate) fn undo(&mut self, lead: &ServerId) -> Applied {
        match self.app.phase {
            Phase::Empty | Phase::Running { .. } | Phase::Held { in_place: None, .. } => {}
            Phase::Held { in_place: Some(ref rollout), .. } => {
                return self.not_now(match rollout.release.rollback {
                    Rollback::ForwardOnly => WhyNot::ForwardOnly,
                    Rollback::Revert | Rollback::Freeze => WhyNot::HeldInPlace,
                });
            }
            Phase::Forward { .. } | Phase::RollingBack { .. } => {
                return self.not_now(WhyNot::NotRunning);
            }
            Phase::Removing { .. } => return self.not_now(WhyNot::BeingRemoved),
        }
        let Some(target) = self.app.good_before.last().cloned() else {
            return self.not_now(WhyNot::NoEarlierRelease);
        };
        let current = self.app.last_good.clone();
        if current.as_ref().is_some_and(|release| release.rollback == Rollback::ForwardOnly) {
            return self.not_now(WhyNot::ForwardOnly);
        }
        let rejected = self.app.rejected.clone();
        self.app.rejected.retain(|entry| entry.release != target);
        if let Err(rejection) = self.start_rollout(&target, self.app.revision, lead) {
            self.app.rejected = rejected;
            return Err(rejection);
        }
        if let Some(rollout) = self.app.phase.rollout_mut() {
            rollout.despite_pause = true;
        }
        if let Some(current) = current {
            self.reject(&current, Reason::Undone { by: self.actor.to_owned() });
        }
        Ok(())
    }

    /// Has servers start the good release again, those of `only` or all that run it.
    pub(crate) fn restart(&mut self, only: &BTreeSet<ServerId>) -> Applied {
        match self.app.phase {
            Phase::Running { .. } | Phase::Held { in_place: None, .. } => {}
            Phase::Empty => return self.not_now(WhyNot::NothingToRestart),
            Phase::Held { in_place: Some(_), .. } => return self.not_now(WhyNot::HeldInPlace),
            Phase::Forward { .. } | Phase::RollingBack { .. } => {
                return self.not_now(WhyNot::NotRunning);
            }
            Phase::Removing { .. } => return self.not_now(WhyNot::BeingRemoved),
        }
        let App { servers, last_good, .. } = &mut *self.app;
        if let Some(server) = only.iter().find(|server| !servers.contains_key(*server)) {
            return Err(Rejection::NoServer { server: server.clone() });
        }
        let mut any = false;
        for (server, here) in servers.iter_mut() {
            let wanted = only.is_empty() || only.contains(server);
            if wanted && last_good.is_some() && here.running == *last_good {
                here.restart = Some(self.clock);
                any = true;
            }
        }
        if any { Ok(()) } else { self.not_now(WhyNot::NothingToRestart) }
    }
}
