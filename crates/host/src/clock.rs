//! Time that goes on while the machine sleeps and that nobody can set: the boot-time clock.

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// Milliseconds since this machine was started, sleep included.
#[must_use]
pub fn boot_time_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    seconds * 1000 + nanos / 1_000_000
}

/// Which start of the machine this is; process ids and boot times of another start mean nothing.
#[must_use]
pub fn boot_id() -> String {
    // A machine without it (no proc) looks like one that never restarts: process ids are still
    // verified by their start time.
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
}

/// How long ago something began, measured so that it survives restarts of the agent.
///
/// The boot-time clock starts again at every start of the machine. Whatever was known to have gone
/// by at the last write is kept, so that a restart of the machine makes the clock late at the most
/// by the time since that write: the group gets longer to answer, never shorter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ElapsedClock {
    boot_id: String,
    since_ms: u64,
    before_ms: u64,
}

impl ElapsedClock {
    /// Begins now.
    pub(crate) fn start() -> Self {
        ElapsedClock { boot_id: boot_id(), since_ms: boot_time_ms(), before_ms: 0 }
    }

    /// Milliseconds gone by.
    pub(crate) fn elapsed_ms(&self) -> u64 {
        self.elapsed_at(&boot_id(), boot_time_ms())
    }

    fn elapsed_at(&self, boot: &str, now_ms: u64) -> u64 {
        let since =
            if boot == self.boot_id { now_ms.saturating_sub(self.since_ms) } else { now_ms };
        self.before_ms.saturating_add(since)
    }

    /// The same clock, ready to be written down.
    pub(crate) fn carried(&self) -> Self {
        ElapsedClock { boot_id: boot_id(), since_ms: boot_time_ms(), before_ms: self.elapsed_ms() }
    }
}

#[cfg(test)]
mod clock_test {
    use super::ElapsedClock;

    #[test]
    fn a_restart_of_the_machine_keeps_what_had_gone_by() {
        let clock = ElapsedClock { boot_id: "a".into(), since_ms: 5_000, before_ms: 100 };
        assert_eq!(clock.elapsed_at("a", 6_000), 1_100);
        assert_eq!(clock.elapsed_at("b", 700), 800, "since the machine's start, and before");
    }

    #[test]
    fn carrying_on_loses_nothing() {
        let clock = ElapsedClock::start();
        assert!(clock.carried().elapsed_ms() >= clock.before_ms);
    }
}
