//! The arrows that need no command: they follow from the state.

use super::Turn;
use crate::phase::{Milestone, Phase, WaveStep};
use crate::reason::DebtReason;
use crate::state::{Ending, GOOD_MAX, push_bounded};

impl Turn<'_> {
    /// Takes one arrow after another until none follows.
    pub(super) fn settle(&mut self) {
        while self.give_up() || self.next_step() || self.finish() || self.hold() {}
        self.stopped();
    }

    /// No server runs the removed app any more: the registry may forget it.
    fn stopped(&mut self) {
        let all = self.app.is_stopped();
        if let Phase::Removing { stopped, .. } = &mut self.app.phase
            && all
            && !*stopped
        {
            *stopped = true;
            self.app.record += 1;
        }
    }

    /// Moves a wave to its next step, once all its servers have completed this one.
    fn next_step(&mut self) -> bool {
        let Phase::Forward { rollout, at: Milestone::Wave { servers, step, since } } =
            &self.app.phase
        else {
            return false;
        };
        let Some(next) = step.next() else { return false };
        let counted = || servers.iter().filter(|server| !rollout.lost.contains(*server));
        let nobody = counted().next().is_none();
        let mut known = counted().filter_map(|server| self.app.servers.get(server));
        let watched_ms = self.clock.since(*since);
        let baking =
            *step == WaveStep::Baking && !nobody && watched_ms < rollout.policy.update.bake_time.ms;
        if baking || !known.all(|here| step.is_done_on(here, &rollout.release)) {
            return false;
        }
        let servers = servers.clone();
        self.reach(Milestone::Wave { servers, step: next, since: self.clock });
        // A wave that lost all its servers has shown nothing: the next one takes its place.
        if nobody
            && next == WaveStep::Baked
            && let Some(rollout) = self.app.phase.rollout_mut()
        {
            rollout.waves = rollout.waves.saturating_sub(1);
        }
        self.progress();
        true
    }

    /// verified, wave-baked ─► running: every reachable server runs the release and was watched.
    fn finish(&mut self) -> bool {
        let Some(rollout) = self.app.phase.between_waves() else { return false };
        if self.app.remaining(rollout).next().is_some() {
            return false;
        }
        let rollout = rollout.clone();
        let release = &rollout.release;
        let old = self.app.last_good.replace(release.clone());
        self.app.good_checks = rollout.checks;
        if let Some(old) = old.filter(|old| old != release) {
            self.app.good_before.retain(|good| *good != old && good != release);
            if self.app.rejection_of(&old).is_none() {
                push_bounded(&mut self.app.good_before, old, GOOD_MAX);
            }
        }
        for here in self.app.servers.values_mut() {
            if here.settled_on(Some(release)) {
                here.debt = None;
            } else {
                here.owe(self.clock, DebtReason::LeftBehind);
            }
        }
        self.app.rejected.retain(|entry| entry.release != *release);
        self.verdict(release, None);
        self.remember(&rollout, Ending::Completed, None);
        self.enter(Phase::Running { since: self.clock });
        true
    }
}
