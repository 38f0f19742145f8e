//! What people decide: to pause and to go on, to approve, to try again, to take back.

use super::{not_now, reject};
use crate::command::{Event, Rejection};
use crate::ids::{AppId, Generation, GroupId, ServerId};
use crate::phase::Phase;
use crate::release::Rollback;
use crate::state::{Pause, State};

impl State {
    pub(crate) fn pause(
        &mut self,
        app_id: &AppId,
        reason: &str,
        actor: &str,
    ) -> Result<(), Rejection> {
        let clock = self.clock;
        let app = self.app_mut(app_id)?;
        if app.phase.forward().is_none() {
            return Err(not_now(app, "no rollout goes forward"));
        }
        app.generation = app.generation.next();
        let rollout = app.phase.rollout_mut().expect("looked at above");
        rollout.pause = Some(Pause {
            by: actor.to_owned(),
            reason: reason.to_owned(),
            since: clock,
            verdict_of: None,
        });
        app.record += 1;
        Ok(())
    }

    pub(crate) fn pause_for_verdict(
        &mut self,
        app_id: &AppId,
        generation: Generation,
        group: &GroupId,
        reason: &str,
    ) -> Result<(), Rejection> {
        let clock = self.clock;
        let app = self.planned(app_id, generation)?;
        if app.phase.forward().is_none() {
            return Err(not_now(app, "no rollout goes forward"));
        }
        app.generation = app.generation.next();
        let rollout = app.phase.rollout_mut().expect("looked at above");
        if rollout.pause.is_none() && !rollout.overruled.contains(group) {
            rollout.pause = Some(Pause {
                by: format!("verdict of {group}"),
                reason: reason.to_owned(),
                since: clock,
                verdict_of: Some(group.clone()),
            });
        }
        Ok(())
    }

    pub(crate) fn resume(&mut self, app_id: &AppId) -> Result<(), Rejection> {
        let clock = self.clock;
        let app = self.app_mut(app_id)?;
        if app.phase.forward().is_none_or(|rollout| rollout.pause.is_none()) {
            return Err(not_now(app, "nothing is paused"));
        }
        app.generation = app.generation.next();
        let rollout = app.phase.rollout_mut().expect("looked at above");
        if let Some(group) = rollout.pause.take().and_then(|pause| pause.verdict_of) {
            rollout.overruled.insert(group);
        }
        rollout.progress = clock;
        app.record += 1;
        Ok(())
    }

    pub(crate) fn approve(&mut self, app_id: &AppId) -> Result<(), Rejection> {
        let clock = self.clock;
        let app = self.app_mut(app_id)?;
        match app.phase.rollout_mut() {
            Some(rollout) if rollout.policy.update.approve_after_wave > 0 => {
                rollout.approved = true;
                rollout.progress = clock;
                Ok(())
            }
            Some(_) | None => Err(not_now(app, "nothing waits for approval")),
        }
    }

    pub(crate) fn retry(&mut self, app_id: &AppId) -> Result<(), Rejection> {
        let app = self.app_mut(app_id)?;
        let mut did = false;
        for server in app.servers.values_mut() {
            if let Some(debt) = &mut server.debt {
                did |= debt.tries > 0;
                debt.tries = 0;
            }
        }
        if let Phase::Held { rejected, .. } = &app.phase {
            let rejected = rejected.clone();
            app.rejected.retain(|entry| entry.release != rejected);
            did = true;
        }
        if did {
            app.generation = app.generation.next();
            Ok(())
        } else {
            Err(not_now(app, "nothing is held and nothing is owed"))
        }
    }

    pub(crate) fn undo(
        &mut self,
        app_id: &AppId,
        lead: &ServerId,
        actor: &str,
        events: &mut Vec<Event>,
    ) -> Result<(), Rejection> {
        let clock = self.clock;
        let app = self.app_mut(app_id)?;
        if !matches!(app.phase, Phase::Running { .. }) {
            return Err(not_now(app, "only a group that runs a release can undo it; use `abort`"));
        }
        let Some(target) = app.good_before.last().cloned() else {
            return Err(not_now(app, "no release before this one is known to be good"));
        };
        let current = app.last_good.clone();
        if current.as_ref().is_some_and(|release| release.rollback == Rollback::ForwardOnly) {
            return Err(not_now(app, "the release that runs is declared forward-only"));
        }
        let revision = app.revision;
        app.rejected.retain(|entry| entry.release != target);
        self.start_rollout(app_id, &target, revision, lead, actor, events)?;
        let app = self.app_mut(app_id)?;
        if let Some(current) = current {
            reject(app, &current, &format!("undone by {actor}"), clock);
        }
        Ok(())
    }
}
