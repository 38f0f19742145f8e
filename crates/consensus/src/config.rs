//! A member's configuration and limits.

use std::ops::RangeInclusive;
use std::time::Duration;

use cohort_store::RaftId;

/// The length of one tick. With the defaults below, members detect a lost leader after 0.5 to 1 s.
pub const TICK: Duration = Duration::from_millis(50);

/// Election timeouts that the simulation has proven, in milliseconds. Below the shortest, a slow
/// disk starts elections; beyond the longest, orders expire before there is a new leader.
const ELECTION_MS: RangeInclusive<u64> = 250..=2_000;
/// Heartbeats that a leader sends in one election timeout, at least: some may get lost.
const HEARTBEATS_PER_ELECTION: u64 = 5;

/// How fast a group detects a lost leader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    election_ticks: u32,
    heartbeat_ticks: u32,
}

/// Why a [`Timing`] was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimingError {
    #[error("the election timeout is {0} ms; it must be 250 ms to 2 s")]
    Election(u64),
    #[error(
        "the heartbeat interval is {heartbeat_ms} ms; it must be at least 50 ms and at most a \
         fifth of the election timeout ({election_ms} ms)"
    )]
    Heartbeat { heartbeat_ms: u64, election_ms: u64 },
}

impl Timing {
    /// A member starts an election after `election_ms` to twice that without a leader, which sends
    /// a heartbeat every `heartbeat_ms`; both in milliseconds, rounded to ticks. Members of a group
    /// may differ for a while.
    ///
    /// # Errors
    /// If one is out of bounds.
    pub fn new(election_ms: u64, heartbeat_ms: u64) -> Result<Timing, TimingError> {
        const TICK_MS: u64 = TICK.as_millis() as u64;
        if !ELECTION_MS.contains(&election_ms) {
            return Err(TimingError::Election(election_ms));
        }
        let (election, heartbeat) = (election_ms / TICK_MS, heartbeat_ms / TICK_MS);
        if heartbeat == 0 || heartbeat * HEARTBEATS_PER_ELECTION > election {
            return Err(TimingError::Heartbeat { heartbeat_ms, election_ms });
        }
        let ticks = |ticks: u64| u32::try_from(ticks).expect("at most 40");
        Ok(Timing { election_ticks: ticks(election), heartbeat_ticks: ticks(heartbeat) })
    }
}

/// The wall clock of a member whose owner sets none, in Unix seconds: 2021.
const FOUNDED_S: u64 = 1_609_459_200;

/// A member's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    pub group: String,
    pub incarnation: u64,
    pub id: RaftId,
    /// Counts this member's starts. Must grow with every start, or peers drop its messages.
    pub boot_epoch: u64,
    /// Identifies this process among all that ever ran as this member, copies of the machine
    /// included: a random number.
    pub life: u64,
    /// Ticks without a leader before an election: the minimum.
    pub election_ticks_min: u32,
    /// Ticks without a leader before an election: the maximum, exclusive.
    pub election_ticks_max: u32,
    /// Ticks between the leader's heartbeats.
    pub heartbeat_ticks: u32,
    /// Seeds the election timeouts: the same seed and the same calls give the same behaviour.
    pub seed: u64,
    /// The wall clock at the start, as Unix time in seconds: it bounds the terms that can have been
    /// reached by now.
    pub unix_s: u64,
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
    /// The member starts without a proof that its disk did not go back and that it is no copy, and
    /// asks none of others.
    pub no_proof: bool,
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
            life: 1,
            election_ticks_min: 10,
            election_ticks_max: 20,
            heartbeat_ticks: 2,
            seed: id.0,
            unix_s: FOUNDED_S,
            limits: Limits::default(),
            weaken: Weaken::default(),
        }
    }

    /// Sets the election timeout and the heartbeat interval.
    pub fn set_timing(&mut self, timing: Timing) {
        self.election_ticks_min = timing.election_ticks;
        self.election_ticks_max = 2 * timing.election_ticks;
        self.heartbeat_ticks = timing.heartbeat_ticks;
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
