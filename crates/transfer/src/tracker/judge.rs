//! Whether a server is behind its parent, and which of the two is at fault.

use std::time::Duration;

use cohort_core::ids::ServerId;

use super::Event;
use super::seen::Seen;
use super::transfer::Transfer;
use crate::Moment;

/// A server is behind if its parent has this many more units (4 MiB).
const BEHIND_UNITS: u32 = 64;

/// Behind for this long: either the server is slow, or its parent has too many children.
const BEHIND_MAX: Duration = Duration::from_millis(1_000);

/// Behind and without a single new unit for this long: it gets another parent, whatever the cause.
const STARVED: Duration = Duration::from_secs(2);

/// A slow server that has been behind for this long tries another parent.
const TRY_OTHER: Duration = Duration::from_secs(5);

/// A server that keeps up with a second parent for this long was not slow: its first parent was.
const ACQUITTED: Duration = Duration::from_secs(2);

impl Transfer {
    /// Judges a server that has just reported.
    pub(super) fn judge(&mut self, server: &ServerId, now: Moment) {
        let parent = self.layout.parents.get(server).cloned();
        let above = parent.as_ref().and_then(|parent| self.seen.get(parent));
        let parent_slow = above.is_some_and(Seen::is_slow);
        let above = above.map(|seen| seen.have.held());
        let Some(seen) = self.seen.get_mut(server) else { return };
        let held = seen.have.held();
        if above.is_none_or(|above| above <= held.saturating_add(BEHIND_UNITS)) {
            seen.behind_since = None;
            self.acquit(server, parent.as_ref().filter(|_| !parent_slow), now);
            return;
        }
        if let Some((_, settled)) = &mut seen.suspect {
            *settled = None;
        }
        let over = now.saturating_sub(*seen.behind_since.get_or_insert(now));
        if over < BEHIND_MAX {
            return;
        }
        let starved = over >= STARVED && now.saturating_sub(seen.grown) >= STARVED;
        // Four fifths: one that catches up is faster than the incoming rate.
        let rate = seen.rate;
        let slow = starved || rate < (self.mirror_rate() * 4 / 5).max(self.link_rate / 8);
        // The children of a complete server are behind it to the end, however fast they are.
        let crowded =
            slow && above != Some(self.units) && self.siblings_are_behind(parent.as_ref());
        if (crowded || self.many_are_behind(now)) && self.layout.fan_out > 1 {
            self.lower_fan_out();
        } else if slow && let Some(parent) = parent {
            self.slow(server, parent, starved, over, now);
        }
    }

    /// Whether a parent has several children, all of them behind.
    fn siblings_are_behind(&self, parent: Option<&ServerId>) -> bool {
        let below = self.layout.parents.iter().filter(|(_, above)| Some(*above) == parent);
        let mut siblings = below.filter_map(|(id, _)| self.seen.get(id));
        let mut count = 0;
        siblings.all(|seen| {
            count += 1;
            seen.behind_since.is_some()
        }) && count > 1
    }

    fn many_are_behind(&self, now: Moment) -> bool {
        let late = self.seen.values().filter(|seen| {
            seen.behind_since.is_some_and(|since| now.saturating_sub(since) >= BEHIND_MAX)
        });
        late.count() * 3 > self.seen.len()
    }

    /// The servers are not slow: their parents feed too many.
    fn lower_fan_out(&mut self) {
        self.events.push(Event::FanOutLowered { from: self.layout.fan_out });
        self.fan_out_failed = Some(self.layout.fan_out);
        for seen in self.seen.values_mut() {
            seen.behind_since = None;
        }
    }

    fn slow(
        &mut self,
        server: &ServerId,
        parent: ServerId,
        starved: bool,
        over: Duration,
        now: Moment,
    ) {
        let Some(seen) = self.seen.get_mut(server) else { return };
        if seen.slow_since.is_none() {
            self.events.push(Event::Slow { server: server.clone(), rate: seen.rate });
        }
        seen.slow_since = Some(now);
        if starved {
            seen.behind_since = None;
            self.trust.nothing(server, &parent, now);
            self.events.push(Event::Starved { server: server.clone(), parent });
        } else if over >= TRY_OTHER {
            seen.behind_since = None;
            self.trust.tried(server, &parent, now);
            seen.suspect = Some((parent, None));
        } else if seen.suspect.is_none() {
            seen.suspect = Some((parent, None));
        }
    }

    /// A slow server that keeps up under another parent was never slow.
    fn acquit(&mut self, server: &ServerId, parent: Option<&ServerId>, now: Moment) {
        let Some(seen) = self.seen.get_mut(server) else { return };
        let Some((suspect, settled)) = &mut seen.suspect else { return };
        if parent.is_none_or(|parent| parent == suspect) {
            *settled = None;
            return;
        }
        let since = *settled.get_or_insert(now);
        if now.saturating_sub(since) < ACQUITTED {
            return;
        }
        if let Some((suspect, _)) = seen.suspect.take() {
            seen.slow_since = None;
            self.trust.nothing(server, &suspect, now);
            self.events.push(Event::Acquitted { server: server.clone(), suspect });
        }
    }
}
