//! How a member is set up, and the limits it keeps.

use std::time::Duration;

use cohort_store::{Identity, RaftId};

/// The length of one tick. With the defaults below, a leader is missed after 0.5 to 1 s.
pub const TICK: Duration = Duration::from_millis(50);

/// How a member is set up.
#[derive(Clone, Debug)]
pub struct Config {
    /// The group's name.
    pub group: String,
    /// The group's incarnation.
    pub incarnation: u64,
    /// This member's number.
    pub id: RaftId,
    /// How often this member was started; larger at every start, or peers drop its messages.
    pub boot_epoch: u64,
    /// Ticks without a leader before an election: at least this many.
    pub election_ticks_min: u32,
    /// Ticks without a leader before an election: fewer than this.
    pub election_ticks_max: u32,
    /// Ticks between the leader's heartbeats.
    pub heartbeat_ticks: u32,
    /// Where the election timeouts come from. Equal seeds and equal calls give equal behaviour.
    pub seed: u64,
    /// The limits.
    pub limits: Limits,
    /// Rules switched off, to see that the tests notice.
    #[doc(hidden)]
    pub weaken: Weaken,
}

/// What a member accepts at most.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of one command. Commands of Cohort are a few hundred bytes to some kilobytes; a
    /// megabyte leaves room for reports and still fits a heartbeat interval on a slow link.
    pub command_bytes_max: usize,
    /// Bytes of commands that are proposed and not yet committed; beyond it the leader is busy.
    /// Sixteen of the largest commands.
    pub uncommitted_bytes_max: usize,
    /// Bytes of entries in one message. Small enough that a member that is behind does not hold
    /// up heartbeats for long.
    pub append_bytes_max: u64,
    /// Messages with entries under way to one peer.
    pub appends_in_flight_max: usize,
    /// Bytes of entries that are applied in one step.
    pub apply_bytes_max: u64,
    /// Bytes of a snapshot's state. The whole snapshot travels in one message, and a frame takes
    /// 16 MiB; a thousand servers with several apps need a few.
    pub snapshot_bytes_max: usize,
    /// Entries kept behind the snapshot, for members that are only a little late.
    pub retained_entries: u64,
    /// Entries after the snapshot before a new one is asked for. It bounds the replay at a start
    /// and the memory of the log.
    pub entries_before_snapshot: u64,
    /// Ticks that a snapshot may be under way before it counts as lost: 10 s.
    pub snapshot_ticks_max: u64,
    /// Entries that a standby may be behind and still be made a voter. What is left is one or two
    /// messages, so that the joint phase does not wait for it.
    pub promote_lag_entries_max: u64,
    /// Voters in one half of a configuration. Five survive two failures; seven leave room while
    /// servers are exchanged. More only makes every decision slower.
    pub voters_max: usize,
    /// Standbys. Each costs the leader a stream; groups have at most some dozens of servers.
    pub standbys_max: usize,
    /// Reads that wait for an answer.
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

/// Rules that a test of the tests switches off. Production leaves all of them on.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default)]
pub struct Weaken {
    /// A leader that is no voter any more neither hands over nor steps down.
    pub no_step_down: bool,
    /// A snapshot under way is never reported as lost.
    pub no_snapshot_report: bool,
    /// Reads are answered from the leader's lease.
    pub lease_reads: bool,
    /// Messages that are late or doubled are taken.
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

    /// What the member's store carries as its identity.
    #[must_use]
    pub fn identity(&self) -> Identity {
        Identity { group: self.group.clone(), incarnation: self.incarnation, raft_id: self.id }
    }

    /// What is wrong with it, if anything.
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
