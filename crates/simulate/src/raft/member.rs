//! One server: a disk, and the successive processes on it.

use std::collections::BTreeMap;

use cohort_consensus::{
    Config, Effects, Envelope, Index, Node, NodeError, RaftId, ReadId, StoreError, Term,
};
use cohort_store::{Disk, EntryKind, FaultyStore, LogStore, WriteFault};

use super::checker::Checker;
use crate::digest::digest;

/// The replicated state: the number of commands, and a hash over all of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Machine {
    pub(crate) commands: u64,
    pub(crate) chain: u64,
}

impl Machine {
    pub(crate) fn encode(self) -> Vec<u8> {
        [self.commands.to_le_bytes(), self.chain.to_le_bytes()].concat()
    }

    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (commands, rest) = bytes.split_first_chunk()?;
        let (chain, _) = rest.split_first_chunk()?;
        Some(Machine { commands: u64::from_le_bytes(*commands), chain: u64::from_le_bytes(*chain) })
    }

    fn apply(&mut self, data: &[u8]) {
        self.commands += 1;
        self.chain = digest(self.chain, data);
    }
}

/// A running process.
pub(crate) struct Process {
    pub(crate) node: Node<FaultyStore>,
    pub(crate) machine: Machine,
    pub(crate) applied: Index,
    /// Commands waiting for their commit.
    proposals: BTreeMap<Index, (Term, u64)>,
    /// Pending reads, with the position below which an answer would be stale.
    reads: BTreeMap<ReadId, Index>,
}

/// A server and its disk.
pub(crate) struct Member {
    pub(crate) disk: Disk,
    pub(crate) config: Config,
    /// An earlier state of the disk.
    pub(crate) image: Option<Disk>,
    /// The disk was restored from its image, and nobody has found out yet.
    pub(crate) restored: bool,
    pub(crate) process: Option<Process>,
    /// Milliseconds between its ticks, by its own clock.
    pub(crate) tick_ms: u64,
    /// When its pause ends, in milliseconds.
    pub(crate) paused_until: u64,
}

/// The outcome of an event for the process.
pub(crate) enum After {
    /// It keeps running; these are its effects.
    Runs(Box<Effects>),
    /// The disk failed and the process exited.
    Died,
    /// The disk went back; the process exited, and the log is set aside.
    WentBack,
    /// The library panicked.
    Panicked(String),
}

impl Member {
    /// Starts a process on the disk.
    pub(crate) fn start(&mut self) -> Result<(), String> {
        self.config.boot_epoch += 1;
        self.config.life = self.config.boot_epoch;
        let store = FaultyStore::open(&self.disk).map_err(|error| error.to_string())?;
        let node = Node::open(store, self.config.clone()).map_err(|error| error.to_string())?;
        self.process = Some(Process {
            node,
            machine: Machine::default(),
            applied: Index(0),
            proposals: BTreeMap::new(),
            reads: BTreeMap::new(),
        });
        Ok(())
    }

    /// Kills the process; everything that was not durable is lost.
    pub(crate) fn crash(&mut self) {
        self.process = None;
        self.disk.crash();
    }

    pub(crate) fn propose(&mut self, data: Vec<u8>) {
        let Some(process) = &mut self.process else { return };
        let hash = digest(0, &data);
        if let Ok((index, term)) = process.node.propose(data) {
            process.proposals.insert(index, (term, hash));
        }
    }

    pub(crate) fn read(&mut self, checker: &Checker) {
        let Some(process) = &mut self.process else { return };
        if let Ok(read) = process.node.read() {
            process.reads.insert(read, checker.read_floor());
        }
    }

    /// Drains the process and checks all its effects.
    pub(crate) fn settle(&mut self, checker: &mut Checker) -> Result<After, String> {
        let id = self.config.id;
        let Some(process) = &mut self.process else { return Ok(After::Died) };
        let effects = match process.node.drain() {
            Ok(effects) => effects,
            Err(NodeError::Store(StoreError::Write { .. } | StoreError::Poisoned { .. })) => {
                self.crash();
                return Ok(After::Died);
            }
            Err(NodeError::WentBack { .. }) if self.restored => return Ok(After::WentBack),
            Err(NodeError::Library(cause)) => return Ok(After::Panicked(cause.to_string())),
            Err(error) => return Err(format!("{id} stopped: {error}")),
        };
        process.apply(id, &effects, checker)?;
        checker.role(&process.node.status())?;
        Ok(After::Runs(Box::new(effects)))
    }

    /// Takes a snapshot; a failing disk ends the process.
    pub(crate) fn compact(&mut self) {
        let Some(process) = &mut self.process else { return };
        let state = process.machine.encode();
        if let Err(cohort_consensus::CompactError::Stopped) =
            process.node.compact(process.applied, state)
        {
            self.crash();
        }
    }

    pub(crate) fn receive(&mut self, envelope: &Envelope) {
        if let Some(process) = &mut self.process {
            process.node.receive(envelope);
        }
    }

    pub(crate) fn set_fault(&self, fault: WriteFault) {
        self.disk.set_fault(fault);
    }
}

impl Process {
    fn apply(
        &mut self,
        id: RaftId,
        effects: &Effects,
        checker: &mut Checker,
    ) -> Result<(), String> {
        if let Some(snapshot) = &effects.installed_snapshot {
            if snapshot.index < self.applied {
                return Err(format!("{id} went back from {} to {}", self.applied, snapshot.index));
            }
            self.machine = Machine::decode(&snapshot.data)
                .ok_or_else(|| format!("{id} restored an invalid state"))?;
            self.applied = snapshot.index;
            checker.restored(id, snapshot.index, self.machine.chain)?;
        }
        let mut commands = effects.committed.iter().peekable();
        let mut at = self.applied.next();
        while at <= effects.applied {
            let entry = self.node.store().image().entry(at).cloned();
            let entry = entry.ok_or_else(|| format!("{id} applied {at}, which is not stored"))?;
            if entry.kind == EntryKind::Data && !entry.data.is_empty() {
                let given = commands.next_if(|command| command.index == at);
                if given.map(|command| &command.data) != Some(&entry.data) {
                    return Err(format!("{id} skipped entry {at}"));
                }
                self.machine.apply(&entry.data);
            }
            checker.applied(id, &entry, self.machine.chain)?;
            if let Some((term, hash)) = self.proposals.remove(&at)
                && term == entry.term
            {
                checker.acknowledged.insert(at, hash);
            }
            at = at.next();
        }
        if let Some(extra) = commands.next() {
            return Err(format!("{id} applied {} twice or out of order", extra.index));
        }
        self.applied = self.applied.max(effects.applied);
        for (read, index) in &effects.reads_ready {
            let floor = self.reads.remove(read);
            let floor = floor.ok_or_else(|| format!("{id} answered {read:?} twice"))?;
            checker.read(id, floor, *index)?;
            checker.read(id, floor, self.applied)?;
        }
        Ok(())
    }
}
