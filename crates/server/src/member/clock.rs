//! The member's clock: ticks, and how long it may sleep.
//!
//! Most ticks only count towards a timeout. A member without input sleeps through those, and makes
//! up for them when it wakes: it decides the same as one that takes a step for every tick.

use cohort_consensus::{LogStore, TICK};

use super::Member;

pub(super) const TICK_MS: u64 = TICK.as_millis() as u64;
/// Ticks to catch up on after a pause of the process. 5: a quarter of a second counts, but a long
/// sleep does not start an election on its own.
const TICKS_CAUGHT_UP_MAX: u64 = 5;

impl<S: LogStore> Member<S> {
    /// When the next step is due without input; in the past if there is already work.
    #[must_use]
    pub fn wake_ms(&self, now_ms: u64) -> u64 {
        if self.may_plan(now_ms) {
            return now_ms;
        }
        let at_ms = self.next_tick_ms + self.idle_ticks() * TICK_MS;
        let plan_ms = self.leading.due_ms().map_or(at_ms, |due_ms| {
            // On a tick, like everything that is due by the clock.
            let ticks = due_ms.saturating_sub(self.next_tick_ms).div_ceil(TICK_MS);
            self.next_tick_ms + ticks * TICK_MS
        });
        at_ms.min(plan_ms)
    }

    /// How many ticks it may sleep through, unless there is input or a plan is due. None before the
    /// first step: what it does after it was opened is not known yet.
    fn idle_ticks(&self) -> u64 {
        let watches = self.changed
            || self.reading.is_some()
            || !self.next_readers.is_empty()
            || self.transfer.is_some()
            || self.stopping.is_some();
        if watches { 0 } else { self.node.idle_ticks() }
    }

    /// Makes up for the idle ticks that it has slept through. After a long pause of the process,
    /// how long it was asleep before is unknown: they are skipped like all others.
    pub(super) fn catch_up(&mut self, now_ms: u64) {
        let Some(late_ms) = now_ms.checked_sub(self.next_tick_ms) else { return };
        let (missed, idle) = (1 + late_ms / TICK_MS, self.idle_ticks());
        let slept = missed.min(idle);
        if slept > 0 && missed <= idle + TICKS_CAUGHT_UP_MAX {
            self.node.sleep(slept);
            self.next_tick_ms += slept * TICK_MS;
            self.changed |= self.leading.tick(self.next_tick_ms - TICK_MS);
        }
    }

    /// The ticks that are due; those missed in a long pause are skipped.
    pub(super) fn ticks(&mut self, now_ms: u64) {
        if now_ms < self.next_tick_ms {
            return;
        }
        self.changed |= self.leading.tick(now_ms);
        let due = 1 + (now_ms - self.next_tick_ms) / TICK_MS;
        self.next_tick_ms += due * TICK_MS;
        for _ in 0..due.min(TICKS_CAUGHT_UP_MAX) {
            self.node.tick();
            if let Some(handover) = &mut self.stopping {
                handover.poll(&mut self.node);
            }
        }
        self.expire_reads(now_ms);
        self.watch_transfer(now_ms);
    }
}
