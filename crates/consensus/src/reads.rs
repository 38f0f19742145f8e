//! Linearizable reads.

use std::collections::BTreeMap;

use cohort_store::{Index, LogStore, RaftId};
use raft::StateRole;

use crate::{Config, Node, ReadContext, ReadError, convert};

/// A read of this process; answered at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);

/// Election timeouts after which an unanswered read is dropped: its caller gave up long ago.
const FORGET_AFTER_ELECTIONS: u64 = 4;

/// Reads waiting for an answer, or for that position to be applied.
#[derive(Debug)]
pub(crate) struct Reads {
    member: RaftId,
    boot_epoch: u64,
    counter: u64,
    forget_after_ticks: u64,
    pending_max: usize,
    /// Unanswered reads: counter to the tick at which they began.
    asked: BTreeMap<u64, u64>,
    /// Answered reads, waiting until that position is applied.
    answered: Vec<(ReadId, Index)>,
}

impl Reads {
    pub(crate) fn new(config: &Config) -> Self {
        Reads {
            member: config.id,
            boot_epoch: config.boot_epoch,
            counter: 0,
            forget_after_ticks: FORGET_AFTER_ELECTIONS * u64::from(config.election_ticks_max),
            pending_max: config.limits.reads_pending_max,
            asked: BTreeMap::new(),
            answered: Vec::new(),
        }
    }

    fn begin(&mut self, clock: u64) -> Option<ReadContext> {
        if self.asked.len() >= self.pending_max {
            return None;
        }
        self.counter += 1;
        self.asked.insert(self.counter, clock);
        Some(ReadContext {
            member: self.member,
            boot_epoch: self.boot_epoch,
            counter: self.counter,
        })
    }

    /// The library answers. Ignores reads of an earlier process of this member.
    pub(crate) fn answer(&mut self, read: ReadContext, index: Index) {
        let ours = read.member == self.member && read.boot_epoch == self.boot_epoch;
        if ours && self.asked.remove(&read.counter).is_some() {
            self.answered.push((ReadId(read.counter), index));
        }
    }

    /// Takes out the reads that may be carried out now.
    pub(crate) fn ready(&mut self, applied: Index) -> Vec<(ReadId, Index)> {
        let (ready, wait) = self.answered.drain(..).partition(|(_, index)| *index <= applied);
        self.answered = wait;
        ready
    }

    pub(crate) fn tick(&mut self, clock: u64) {
        let forget = self.forget_after_ticks;
        self.asked.retain(|_, asked| *asked + forget >= clock);
    }
}

impl<S: LogStore> Node<S> {
    /// Begins a linearizable read, on any member.
    ///
    /// When the id shows up in [`Effects::reads_ready`](crate::Effects::reads_ready), the state
    /// after applying those effects is at least as new as everything acknowledged before this
    /// call. It may never show up (no leader, a lost message): wait with a deadline, then call
    /// this again. An id is never used twice.
    ///
    /// # Errors
    /// When there will certainly be no answer.
    pub fn read(&mut self) -> Result<ReadId, ReadError> {
        if self.stopped() {
            return Err(ReadError::Stopped);
        }
        // Trap: the library silently drops such reads.
        let raft = &self.raw.raft;
        if raft.state == StateRole::Leader {
            if !raft.commit_to_current_term() {
                return Err(ReadError::NotReady);
            }
        } else if raft.leader_id == raft::INVALID_ID {
            return Err(ReadError::NoLeader);
        }
        let context = self.reads.begin(self.clock).ok_or(ReadError::Busy)?;
        self.library(|raw| raw.read_index(convert::read_in(context))).ok_or(ReadError::Stopped)?;
        Ok(ReadId(context.counter))
    }
}
