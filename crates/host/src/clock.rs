//! Time that goes on while the machine sleeps and that nobody can set: the boot-time clock.

use rustix::time::{ClockId, clock_gettime};

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
