//! When an agent gives up its ballast, and when it accepts nothing more for the log.
//!
//! The ballast is a file of [`BALLAST_BYTES`] in the data directory. When something else fills the
//! disk, the agent removes it: what must be written (the log, fences, the kill switch) has that
//! much room, while an operator hears of it. Before the log could become unwritable, a leader
//! refuses what would grow it.

use cohort_core::machine::DiskSpace;

/// The size of the ballast, in bytes. 32 MiB: the log between two snapshots, and hours of records.
pub const BALLAST_BYTES: u64 = 32 << 20;
/// With less free space than this, in bytes, the ballast is given up.
const LOW_BYTES: u64 = 32 << 20;
/// With less free space than this and no ballast, in bytes, nothing more is accepted for the log:
/// what is in progress still fits.
const EXHAUSTED_BYTES: u64 = 16 << 20;
/// Free space beyond the ballast that is needed to take it back, in bytes: it must not come and go.
const BACK_BYTES: u64 = 2 * LOW_BYTES;

/// What a look at the disk saw.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// What the agent may still write to the file system, in bytes.
    pub free_bytes: u64,
    /// Whether the ballast is there.
    pub ballast: bool,
    /// Whether the file system rejects all writes.
    pub read_only: bool,
}

/// What to do about the ballast.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ballast {
    Leave,
    GiveUp,
    Take,
}

/// What to do about the ballast, and how much space is left after that.
#[must_use]
pub fn judge(look: Look) -> (Ballast, DiskSpace) {
    let Look { free_bytes, ballast, read_only } = look;
    if read_only {
        return (Ballast::Leave, DiskSpace::ReadOnly);
    }
    match ballast {
        true if free_bytes < LOW_BYTES => (Ballast::GiveUp, DiskSpace::Low),
        true => (Ballast::Leave, DiskSpace::Enough),
        false if free_bytes >= BALLAST_BYTES + BACK_BYTES => (Ballast::Take, DiskSpace::Enough),
        false if free_bytes < EXHAUSTED_BYTES => (Ballast::Leave, DiskSpace::Exhausted),
        false => (Ballast::Leave, DiskSpace::Low),
    }
}

#[cfg(test)]
mod space_test {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn judged(free_bytes: u64, ballast: bool) -> (Ballast, DiskSpace) {
        judge(Look { free_bytes, ballast, read_only: false })
    }

    #[test]
    fn the_ballast_goes_first_and_comes_back_last() {
        assert_eq!(judged(500 * MIB, false), (Ballast::Take, DiskSpace::Enough));
        assert_eq!(judged(40 * MIB, true), (Ballast::Leave, DiskSpace::Enough));
        assert_eq!(judged(31 * MIB, true), (Ballast::GiveUp, DiskSpace::Low));
        assert_eq!(judged(95 * MIB, false), (Ballast::Leave, DiskSpace::Low), "not back yet");
        assert_eq!(judged(15 * MIB, false), (Ballast::Leave, DiskSpace::Exhausted));
        assert_eq!(judged(0, true), (Ballast::GiveUp, DiskSpace::Low));
        assert_eq!(judged(96 * MIB, false), (Ballast::Take, DiskSpace::Enough));
        // After it was taken, there is enough for it to stay.
        assert_eq!(judged(96 * MIB - BALLAST_BYTES, true), (Ballast::Leave, DiskSpace::Enough));
    }

    #[test]
    fn a_read_only_disk_is_not_a_full_one() {
        let look = Look { free_bytes: 500 * MIB, ballast: false, read_only: true };
        assert_eq!(judge(look), (Ballast::Leave, DiskSpace::ReadOnly));
    }
}
