//! Linearizable reads.

use std::collections::BTreeMap;

use cohort_store::{Index, RaftId};

use crate::{Config, ReadContext};

/// A read by this process; answered at most once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReadId(pub u64);

/// Election timeouts after which an unanswered read is dropped: its caller gave up long ago.
const FORGET_AFTER_ELECTIONS: u64 = 4;

/// Reads waiting for an answer, or for the answered position to be applied.
#[derive(Debug)]
pub(crate) struct Reads {
    member: RaftId,
    boot_epoch: u64,
    counter: u64,
    /// See [`crate::Weaken`].
    same_context: bool,
    forget_after_ticks: u64,
    pending_max: usize,
    /// Unanswered reads: from counter to the tick of their start.
    asked: BTreeMap<u64, u64>,
    /// Answered reads, waiting until their position is applied.
    answered: Vec<(ReadId, Index)>,
}

impl Reads {
    pub(crate) fn new(config: &Config) -> Self {
        Reads {
            member: config.id,
            boot_epoch: config.boot_epoch,
            counter: 0,
            same_context: config.weaken.same_read_context,
            forget_after_ticks: FORGET_AFTER_ELECTIONS * u64::from(config.election_ticks_max),
            pending_max: config.limits.reads_pending_max,
            asked: BTreeMap::new(),
            answered: Vec::new(),
        }
    }

    pub(crate) fn begin(&mut self, clock: u64) -> Option<ReadContext> {
        if self.asked.len() >= self.pending_max {
            return None;
        }
        if !self.same_context || self.counter == 0 {
            self.counter += 1;
        }
        self.asked.insert(self.counter, clock);
        Some(ReadContext {
            member: self.member,
            boot_epoch: self.boot_epoch,
            counter: self.counter,
        })
    }

    /// The library's answer. Ignores reads by an earlier process of this member.
    pub(crate) fn answer(&mut self, read: ReadContext, index: Index) {
        let ours = read.member == self.member && read.boot_epoch == self.boot_epoch;
        if ours && self.asked.remove(&read.counter).is_some() {
            self.answered.push((ReadId(read.counter), index));
        }
    }

    /// Takes the reads that may run now.
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
