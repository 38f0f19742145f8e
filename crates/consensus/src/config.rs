//! A member's configuration and limits.

use std::time::Duration;

use cohort_store::RaftId;

/// The length of one tick. With the defaults below, a leader is missed after 0.5 to 1 s.
pub const TICK: Duration = Duration::from_millis(50);

/// A member's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub group: String,
    pub incarnation: u64,
    pub id: RaftId,
    /// Counts this member's starts. Must grow with every start, or peers drop its messages.
    pub boot_epoch: u64,
    /// Ticks without a leader before an election: at least this many.
    pub election_ticks_min: u32,
    /// Ticks without a leader before an election: fewer than this.
    pub election_ticks_max: u32,
    /// Ticks between the leader's heartbeats.
    pub heartbeat_ticks: u32,
    /// Seeds the election timeouts. The same seed and calls give the same behaviour.
    pub seed: u64,
    pub limits: Limits,
    /// Rules switched off, to prove that the tests would notice.
    #[doc(hidden)]
    pub weaken: Weaken,
}

/// Upper bounds of what a member accepts.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one command. Commands of Cohort are a few hundred bytes to some kilobytes; a
    /// megabyte leaves room for reports and still fits a heartbeat interval on a slow link.
    pub command_bytes_max: usize,
    /// Bytes of commands proposed and not yet committed; beyond that the leader is busy.
    /// Sixteen of the largest commands.
    pub uncommitted_bytes_max: usize,
    /// Bytes of entries in one message. Small enough that catching up does not delay heartbeats
    /// for long.
    pub append_bytes_max: u64,
    /// Messages with entries in flight to one peer.
    pub appends_in_flight_max: usize,
    /// Bytes of entries applied in one step.
    pub apply_bytes_max: u64,
    /// Bytes of a snapshot's state. The whole snapshot travels in one message, and a frame takes
    /// 16 MiB; a thousand servers with several apps need a few.
    pub snapshot_bytes_max: usize,
    /// Entries kept behind the snapshot, for members that are only slightly behind.
    pub retained_entries: u64,
    /// Entries after the snapshot before a new one is asked for. It bounds the replay at a start
    /// and the memory of the log.
    pub entries_before_snapshot: u64,
    /// Ticks after which a snapshot in flight counts as lost: 10 s.
    pub snapshot_ticks_max: u64,
    /// Entries that a standby may be behind and still become a voter. One or two messages close
    /// the gap, so the joint phase does not wait for it.
    pub promote_lag_entries_max: u64,
    /// Voters in one half of a configuration. Five survive two failures; seven leave room while
    /// servers are replaced. More only slow down every decision.
    pub voters_max: usize,
    /// Standbys. Each costs the leader a stream; groups have at most some dozens of servers.
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

/// Rules that tests of the tests switch off; all are on in production.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Weaken {
    /// A leader that is no longer a voter neither hands over nor steps down.
    pub no_step_down: bool,
    /// A snapshot in flight is never reported as lost.
    pub no_snapshot_report: bool,
    /// Reads are answered from the leader's lease.
    pub lease_reads: bool,
    /// Late and duplicated messages are accepted.
    pub no_filter: bool,
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

    /// The first thing wrong with it, if any.
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
            return Some("the longest election timeout must be above the shortest");
        }
        if self.boot_epoch == 0 || self.boot_epoch > crate::filter::BOOT_EPOCH_MAX {
            return Some("the boot epoch is out of range");
        }
        None
    }
}
