//! Yielding: how fast transfers may go while the machine is under pressure.
//!
//! Pure: from the pressure and rate since the last look to a limit, by additive increase and
//! multiplicative decrease. Above a threshold the limit drops by a quarter per look; below it, it
//! grows in equal steps until it no longer binds. It never drops below a floor, so that a release
//! gets through on a machine that is always busy and a rollout's deadlines hold.
//!
//! Pressure counts relative to what it was while nothing was transferred: a database that always
//! waits for its disk is no reason to be slow for ever.

/// I/O pressure this far above the usual is too much, in thousandths of the time. Below 300 it may
/// be somebody else's syncs of a few files.
const IO_EXCESS_MAX: u32 = 300;

/// CPU pressure this far above the usual is too much, in thousandths of the time. It is high as
/// soon as any two tasks want one processor at once, which costs microseconds; only near the top of
/// the scale does everything wait.
const CPU_EXCESS_MAX: u32 = 600;

/// Looks in a row under pressure before the rate is cut: a single one may be a database checkpoint,
/// or the sync at the end of another artifact.
const PRESSED_LOOKS_MIN: u32 = 2;

/// A cut is to three quarters: at four looks a second, to a third within a second.
const CUT_NUMERATOR: u64 = 3;
const CUT_DENOMINATOR: u64 = 4;

/// The limit grows per look by this fraction of the rate before the first cut: back in 4 s.
const GROWTH_PART: u64 = 16;

/// A limit of this many times the actual rate no longer binds, and is lifted.
const FREE_TIMES: u64 = 2;

/// Below this rate, in bytes per second, nothing is being transferred: control messages, retries.
const IDLE_RATE: u64 = 64 * 1024;

/// Weight of the usual pressure against the latest look: it follows over about 16 looks, 4 s.
const USUAL_PART: u32 = 16;

/// The share of the time in which some task waited, in thousandths.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Pressure {
    /// Waited for the disk.
    pub io: u32,
    /// Waited for a processor.
    pub cpu: u32,
}

/// What happened since the last look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seen {
    pub pressure: Pressure,
    /// Rate of transfers in bytes per second, in the busier direction.
    pub rate: u64,
}

/// The state of the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Yielding {
    /// The lowest limit, in bytes per second.
    floor: u64,
    usual: Pressure,
    pressed: u32,
    limit: Option<Limit>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limit {
    rate: u64,
    /// The rate before the first cut.
    full: u64,
}

impl Yielding {
    /// Starts without a limit; `usual` is the pressure measured so far.
    pub(crate) fn new(floor: u64, usual: Pressure) -> Self {
        Self { floor: floor.max(1), usual, pressed: 0, limit: None }
    }

    pub(crate) fn set_floor(&mut self, floor: u64) {
        self.floor = floor.max(1);
    }

    /// The limit until the next look, in bytes per second; `None` for no limit.
    pub(crate) fn look(&mut self, seen: Seen) -> Option<u64> {
        let pressed = self.is_pressed(seen.pressure) && seen.rate >= IDLE_RATE;
        self.pressed = if pressed { self.pressed.saturating_add(1) } else { 0 };
        match self.pressed {
            0 => self.grow(seen.rate),
            PRESSED_LOOKS_MIN.. => self.cut(seen.rate),
            // Not long enough to cut, too much to grow.
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
        // A piece is sent whole, so the actual rate can exceed the limit.
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
