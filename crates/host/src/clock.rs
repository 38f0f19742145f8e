//! The boot-time clock: it counts while the machine sleeps, and cannot be set.

use std::sync::LazyLock;
use std::time::Duration;

use cohort_core::steps::BootTime;
use rustix::time::{ClockId, clock_gettime};

/// Time since this machine booted, including sleep.
pub(crate) fn boot_time() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Milliseconds since this machine booted, including sleep.
#[must_use]
pub fn boot_time_ms() -> u64 {
    u64::try_from(boot_time().as_millis()).unwrap_or(u64::MAX)
}

/// Identifies this boot of the machine. Process ids and boot times of other boots are meaningless.
pub(crate) fn boot_id() -> &'static str {
    // Without /proc, the machine seems never to have rebooted; process ids are still verified by
    // their start time.
    static BOOT_ID: LazyLock<String> = LazyLock::new(|| {
        std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .map_or_else(|_| "unknown".to_owned(), |text| text.trim().to_owned())
    });
    &BOOT_ID
}

/// A reading of the boot-time clock.
pub(crate) fn now() -> BootTime<'static> {
    BootTime { boot: boot_id(), ms: boot_time_ms() }
}
