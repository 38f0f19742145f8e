//! What happens to a rollout with failures.

use std::collections::BTreeSet;

use super::{Applied, Turn};
use crate::command::WhyNot;
use crate::ids::ServerId;
use crate::phase::Phase;
use crate::reason::Reason;
use crate::release::Rollback;
use crate::report::Blame;
use crate::state::{Ending, Rollout};

/// What a rollout does about its failures.
enum Course {
    /// Continue: the budgets cover them.
    Tolerate,
    /// Stop where it is.
    Stay(Reason),
    /// Take every server back to `last_good`.
    GoBack(Reason),
}

/// Whether to tolerate the failures, stay, or go back: decided only here. `raised` is a deadline's
/// or an operator's reason; without one, only the failures so far count.
fn course(turn: &Turn<'_>, rollout: &Rollout, raised: Option<Reason>, by_person: bool) -> Course {
    let Some(reason) = raised.or_else(|| over_budget(turn, rollout)) else {
        return Course::Tolerate;
    };
    let back = match rollout.release.rollback {
        Rollback::ForwardOnly => false,
        Rollback::Freeze => by_person,
        Rollback::Revert => by_person || rollout.policy.update.auto_revert,
    };
    if back { Course::GoBack(reason) } else { Course::Stay(reason) }
}

/// Why the budgets do not cover the failures so far. A rollout with no server left that runs its
/// release has failed, whatever its budgets: nothing is proven, and it must not become good.
fn over_budget(turn: &Turn<'_>, rollout: &Rollout) -> Option<Reason> {
    let first = |blame: Blame| {
        let failure = rollout.failures.iter().find(|failure| failure.blame == blame);
        let named = |servers: &BTreeSet<ServerId>| {
            let all = servers.difference(&rollout.failed);
            all.take(Reason::SERVERS_NAMED_MAX).cloned().collect()
        };
        match failure {
            None if !rollout.unfetched.is_empty() => Reason::NotDownloaded {
                within: rollout.policy.update.progress_deadline,
                servers: named(&rollout.unfetched),
                lost: named(&rollout.lost.difference(&rollout.unfetched).cloned().collect()),
            },
            None => Reason::ServersLost { servers: named(&rollout.lost) },
            Some(failure) => Reason::ServerFailed {
                server: failure.server.clone(),
                step: failure.step,
                text: failure.reason.clone(),
            },
        }
    };
    let app = &*turn.app;
    let nobody_left = || {
        app.phase.between_waves().is_some()
            && app.remaining(rollout).next().is_none()
            && !app.servers.values().any(|here| here.settled_on(Some(&rollout.release)))
    };
    let (policy, size) = (&rollout.policy, turn.size());
    if rollout.release_failures > policy.failures_allowed_of(size) {
        Some(first(Blame::Release))
    } else if rollout.surroundings_failures > policy.surroundings_allowed_of(size) {
        Some(first(Blame::Surroundings))
    } else if nobody_left() {
        // What a server failed at says what to do.
        let said = rollout.failures.iter().any(|failure| failure.blame == Blame::Surroundings);
        Some(if said { first(Blame::Surroundings) } else { Reason::NoServerLeft })
    } else {
        None
    }
}

impl Turn<'_> {
    /// A deadline passed, or an operator aborted.
    pub(crate) fn fail(&mut self, reason: Reason, by_person: bool) -> Applied {
        let rollout = match &mut self.app.phase {
            Phase::Forward { rollout, .. } => rollout.clone(),
            Phase::Held { in_place: Some(rollout), .. } if by_person => rollout.clone(),
            Phase::RollingBack { by_person: ordered, .. } if by_person => {
                // From now on, it continues under the kill switch.
                *ordered = true;
                return Ok(());
            }
            Phase::Empty
            | Phase::Running { .. }
            | Phase::RollingBack { .. }
            | Phase::Held { .. }
            | Phase::Removing { .. } => return self.not_now(WhyNot::NoRollout),
        };
        match course(self, &rollout, Some(reason), by_person) {
            Course::Stay(_) if matches!(self.app.phase, Phase::Held { .. }) => {
                return self.not_now(WhyNot::ForwardOnly);
            }
            course => self.follow(rollout, course, by_person),
        }
        Ok(())
    }

    /// Ends a rollout whose budgets are exhausted; returns whether it did.
    pub(super) fn give_up(&mut self) -> bool {
        let Some(rollout) = self.app.phase.forward() else { return false };
        match course(self, rollout, None, false) {
            Course::Tolerate => false,
            course => {
                let rollout = Box::new(rollout.clone());
                self.follow(rollout, course, false);
                true
            }
        }
    }

    fn follow(&mut self, rollout: Box<Rollout>, course: Course, by_person: bool) {
        let (Course::Stay(reason) | Course::GoBack(reason)) = &course else { return };
        if rollout.release_failures > 0 {
            self.verdict(&rollout.release, Some(reason.clone()));
        }
        self.app.generation = self.app.generation.next();
        match course {
            Course::Tolerate => {}
            Course::Stay(reason) => self.hold_in_place(rollout, reason),
            Course::GoBack(reason) => self.roll_back(rollout, reason, by_person),
        }
    }

    /// forward, held ─► rolling-back.
    fn roll_back(&mut self, mut rollout: Box<Rollout>, reason: Reason, by_person: bool) {
        let good = &self.app.last_good;
        for here in self.app.servers.values_mut() {
            if here.running == *good && (here.in_service || good.is_none()) {
                // It failed before anything on it was touched.
                here.forget_ended();
            }
        }
        // A failed server is reachable; the planner determines again which ones are not.
        rollout.lost.clear();
        rollout.unfetched.clear();
        rollout.failed.clear();
        rollout.progress = self.clock;
        self.enter(Phase::RollingBack { rollout, reason, by_person, since: self.clock });
    }

    /// forward ─► held, without going back.
    fn hold_in_place(&mut self, rollout: Box<Rollout>, reason: Reason) {
        self.enter_held(&rollout.clone(), Ending::HeldInPlace, reason, Some(rollout));
    }

    /// rolling-back ─► held: every reachable server is back. Returns whether that happened.
    pub(super) fn hold(&mut self) -> bool {
        let Phase::RollingBack { rollout, reason, .. } = &self.app.phase else { return false };
        if self.app.to_roll_back(rollout).next().is_some() {
            return false;
        }
        let (rollout, reason) = (rollout.clone(), reason.clone());
        let good = self.app.last_good.clone();
        for here in self.app.servers.values_mut() {
            if here.settled_on(good.as_ref()) {
                here.debt = None;
            } else {
                here.forget_ended();
                here.owe(self.clock, crate::reason::DebtReason::NotRolledBack);
            }
        }
        self.enter_held(&rollout, Ending::RolledBack, reason, None);
        true
    }

    fn enter_held(
        &mut self,
        rollout: &Rollout,
        ending: Ending,
        reason: Reason,
        in_place: Option<Box<Rollout>>,
    ) {
        let rejected = rollout.release.clone();
        self.reject(&rejected, reason.clone());
        self.remember(rollout, ending, Some(reason.clone()));
        self.enter(Phase::Held { rejected, reason, since: self.clock, in_place });
    }
}
