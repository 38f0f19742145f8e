//! A member's configuration and limits.

use std::time::Duration;

use cohort_store::RaftId;

/// The length of one tick. With the defaults below, members detect a lost leader after 0.5 to 1 s.
pub const TICK: Duration = Duration::from_millis(50);

/// A member's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub group: String,
    pub incarnation: u64,
    pub id: RaftId,
    /// Counts this member's starts. Must grow with every start, or peers drop its messages.
    pub boot_epoch: u64,
    /// Ticks without a leader before an election: the minimum.
    pub election_ticks_min: u32,
    /// Ticks without a leader before an election: the maximum, exclusive.
    pub election_ticks_max: u32,
    /// Ticks between the leader's heartbeats.
    pub heartbeat_ticks: u32,
    /// Seeds the election timeouts: the same seed and the same calls give the same behaviour.
    pub seed: u64,
    pub limits: Limits,
    /// Rules switched off, to prove that the tests detect it.
    #[doc(hidden)]
    pub weaken: Weaken,
}

/// Upper bounds on what a member accepts.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one command. Cohort's commands have a few hundred bytes to a few kilobytes; a
    /// megabyte leaves room for reports and still fits a heartbeat interval on a slow link.
    pub command_bytes_max: usize,
    /// Bytes of commands proposed but not yet committed; beyond that, the leader is busy. Sixteen
    /// of the largest commands.
    pub uncommitted_bytes_max: usize,
    /// Bytes of entries in one message. Small enough that catching up does not delay heartbeats
    /// for long.
    pub append_bytes_max: u64,
    /// Messages with entries in flight to one peer.
    pub appends_in_flight_max: usize,
    /// Bytes of entries applied in one step.
    pub apply_bytes_max: u64,
    /// Bytes of a snapshot's state. The whole snapshot travels in one message, and a frame holds 16
    /// MiB; a thousand servers with several apps need a few MiB.
    pub snapshot_bytes_max: usize,
    /// Entries kept behind the snapshot, for members that are only slightly behind.
    pub retained_entries: u64,
    /// Entries after the snapshot before the member requests a new one. Bounds the replay at start
    /// and the memory for the log.
    pub entries_before_snapshot: u64,
    /// Ticks after which a snapshot in flight counts as lost: 10 s.
    pub snapshot_ticks_max: u64,
    /// How many entries a standby may lag and still become a voter. One or two messages close the
    /// gap, so the joint phase does not wait for it.
    pub promote_lag_entries_max: u64,
    /// Voters in one half of a configuration. Five tolerate two failures; seven leave room to
    /// replace servers. More only slow down every decision.
    pub voters_max: usize,
    /// Standbys. Each costs the leader a stream; groups have at most a few dozen servers.
    pub standbys_max: usize,
    /// Reads waiting for an answer.
    pub reads_pending_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            command_bytes_max: 1024 * 1024,
            uncommitted_bytes_max: 16 * 1024 * 1024,
            append_bytes_max: 1024 * 1024,
            appends_in_flight_max: 64,
            apply_bytes_max: 4 * 1024 * 1024,
            snapshot_bytes_max: 15 * 1024 * 1024,
            retained_entries: 1024,
            entries_before_snapshot: 4096,
            snapshot_ticks_max: 200,
            promote_lag_entries_max: 64,
            voters_max: 7,
            standbys_max: 64,
            reads_pending_max: 4096,
        }
    }
}

/// Rules that the tests' own tests switch off; all are on in production.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Weaken {
    /// A leader that is no longer a voter neither transfers leadership nor steps down.
    pub no_step_down: bool,
    /// The member never reports a snapshot in flight as lost.
    pub no_snapshot_report: bool,
    /// The leader answers reads from its lease.
    pub lease_reads: bool,
    /// The member accepts late and duplicate messages.
    pub no_filter: bool,
    /// Every read of the member has the same context.
    pub same_read_context: bool,
}

impl Config {
    /// The defaults for one member, at its first start.
    #[must_use]
    pub fn new(group: impl Into<String>, incarnation: u64, id: RaftId) -> Self {
        Config {
            group: group.into(),
            incarnation,
            id,
            boot_epoch: 1,
            election_ticks_min: 10,
            election_ticks_max: 20,
            heartbeat_ticks: 2,
            seed: id.0,
            limits: Limits::default(),
            weaken: Weaken::default(),
        }
    }

    /// The first problem found, if any.
    pub(crate) fn problem(&self) -> Option<&'static str> {
        if self.id.0 == 0 {
            return Some("the member's number is 0");
        }
        if self.group.is_empty() || self.group.len() > usize::from(u8::MAX) {
            return Some("the group's name must have 1 to 255 bytes");
        }
        if self.heartbeat_ticks == 0 || self.election_ticks_min <= self.heartbeat_ticks {
            return Some("the election timeout must be longer than a heartbeat interval");
        }
        if self.election_ticks_max <= self.election_ticks_min {
            return Some("the maximum election timeout must exceed the minimum");
        }
        if self.boot_epoch == 0 || self.boot_epoch > crate::filter::BOOT_EPOCH_MAX {
            return Some("the boot epoch is out of range");
        }
        None
    }
}
