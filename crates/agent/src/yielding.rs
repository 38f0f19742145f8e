//! Making way: how fast artifacts may move while the machine is short of something.
//!
//! Pure: from what was seen since the last look to a rate, by the rule of congestion control. Above a
//! threshold the rate is cut by a quarter, again and again; below it, it grows in equal steps until
//! it binds nobody any more. It never goes below a floor, so that a release comes through on a
//! machine that is always busy and the deadlines of a rollout hold.
//!
//! What counts is how much more the machine waits than it did while nothing was transferred: a
//! database that always waits for its disk is no reason to be slow for ever.

/// Tasks wait for the disk: three tenths of the time more than usual. Below that it may be a few
/// files that somebody else syncs.
const IO_EXCESS_MAX: u32 = 300;

/// Tasks wait for a processor: three fifths of the time more than usual. That figure is high as
/// soon as any two tasks want one processor at once, which costs microseconds; near the top of the
/// scale, everything waits.
const CPU_EXCESS_MAX: u32 = 600;

/// So many looks in a row: a quarter of a second may be a checkpoint of a database, or the one sync
/// at the end of another artifact.
const PRESSED_LOOKS_MIN: u32 = 2;

/// The rate is cut to three quarters: at four looks a second, to a third within a second.
const CUT_NUMERATOR: u64 = 3;
const CUT_DENOMINATOR: u64 = 4;

/// The rate grows by this part of what it was when it was first cut: back within four seconds.
const GROWTH_PART: u64 = 16;

/// A rate that is this many times what moves binds nobody.
const FREE_TIMES: u64 = 2;

/// Below this many bytes per second nothing is being transferred: control messages, retries.
const IDLE_RATE: u64 = 64 * 1024;

/// What is usual follows what is seen by this part: over some 16 looks, four seconds.
const USUAL_PART: u32 = 16;

/// The part of the time in which some task waited for something, in thousandths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    /// For the disk.
    pub io: u32,
    /// For a processor.
    pub cpu: u32,
}

/// What was seen since the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub pressure: Pressure,
    /// How fast artifacts moved, in bytes per second: the busier of the two directions.
    pub rate: u64,
}

/// The state of the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Yielding {
    /// Never slower than this, in bytes per second.
    floor: u64,
    usual: Pressure,
    /// Looks in a row at which the machine was short of something.
    pressed: u32,
    limit: Option<Limit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit {
    rate: u64,
    /// What it was when it was first cut.
    full: u64,
}

impl Yielding {
    /// Nothing is limited; `usual` is what was measured before.
    pub(crate) fn new(floor: u64, usual: Pressure) -> Self {
        Self { floor: floor.max(1), usual, pressed: 0, limit: None }
    }

    /// Another floor.
    pub(crate) fn set_floor(&mut self, floor: u64) {
        self.floor = floor.max(1);
    }

    /// How fast artifacts may move until the next look, in bytes per second; `None`: as fast as they
    /// can.
    pub(crate) fn look(&mut self, seen: Seen) -> Option<u64> {
        let pressed = self.is_pressed(seen.pressure) && seen.rate >= IDLE_RATE;
        self.pressed = if pressed { self.pressed.saturating_add(1) } else { 0 };
        match self.pressed {
            0 => self.grow(seen.rate),
            PRESSED_LOOKS_MIN.. => self.cut(seen.rate),
            // Neither one nor the other yet.
            _ => {}
        }
        if seen.rate < IDLE_RATE && self.limit.is_none() {
            self.learn(seen.pressure);
        }
        self.limit.map(|limit| limit.rate)
    }

    fn is_pressed(&self, seen: Pressure) -> bool {
        seen.io > self.usual.io.saturating_add(IO_EXCESS_MAX)
            || seen.cpu > self.usual.cpu.saturating_add(CPU_EXCESS_MAX)
    }

    fn cut(&mut self, moved: u64) {
        // What moved can be more than what may: a piece goes whole.
        let before = self.limit.map_or(moved, |limit| limit.rate.min(moved));
        let rate = (before / CUT_DENOMINATOR * CUT_NUMERATOR).max(self.floor);
        let full = self.limit.map_or(moved, |limit| limit.full);
        self.limit = Some(Limit { rate, full: full.max(self.floor) });
    }

    fn grow(&mut self, moved: u64) {
        let Some(limit) = &mut self.limit else { return };
        limit.rate = limit.rate.saturating_add((limit.full / GROWTH_PART).max(1));
        let free = limit.rate >= limit.full && limit.rate / FREE_TIMES >= moved;
        if free || limit.rate / FREE_TIMES >= limit.full {
            self.limit = None;
        }
    }

    fn learn(&mut self, seen: Pressure) {
        let towards = |usual: &mut u32, seen: u32| {
            let sum = u64::from(*usual) * u64::from(USUAL_PART - 1) + u64::from(seen);
            *usual = u32::try_from(sum.div_ceil(u64::from(USUAL_PART))).unwrap_or(*usual);
        };
        towards(&mut self.usual.io, seen.io);
        towards(&mut self.usual.cpu, seen.cpu);
    }
}

#[cfg(test)]
#[path = "yielding_test.rs"]
mod yielding_test;
