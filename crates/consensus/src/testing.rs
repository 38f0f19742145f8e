//! A few members in one thread with a perfect network, for this crate's own tests.

use std::collections::{BTreeMap, BTreeSet};

use cohort_store::{Disk, FaultyStore, RaftId};

use crate::{Committed, Config, Effects, Envelope, Index, Node, ReadId};

/// Members by number, and what each of them has applied.
pub(crate) struct Group {
    pub(crate) nodes: BTreeMap<RaftId, Node<FaultyStore>>,
    pub(crate) applied: BTreeMap<RaftId, Vec<Committed>>,
    pub(crate) states: BTreeMap<RaftId, Vec<u8>>,
    pub(crate) reads: BTreeMap<RaftId, Vec<(ReadId, Index)>>,
    pub(crate) cut_off: BTreeSet<RaftId>,
    pub(crate) mail: Vec<Envelope>,
    pub(crate) tune: fn(&mut Config),
}

pub(crate) fn ids(numbers: &[u64]) -> BTreeSet<RaftId> {
    numbers.iter().copied().map(RaftId).collect()
}

pub(crate) fn empty_store() -> FaultyStore {
    FaultyStore::open(&Disk::new()).unwrap()
}

impl Group {
    /// A group founded by `voters`.
    pub(crate) fn of(voters: &[u64]) -> Self {
        Self::tuned(voters, |_| {})
    }

    pub(crate) fn tuned(voters: &[u64], tune: fn(&mut Config)) -> Self {
        let mut group = Group {
            nodes: BTreeMap::new(),
            applied: BTreeMap::new(),
            states: BTreeMap::new(),
            reads: BTreeMap::new(),
            cut_off: BTreeSet::new(),
            mail: Vec::new(),
            tune,
        };
        for id in ids(voters) {
            let mut store = empty_store();
            let config = group.config(id, 1);
            Node::bootstrap(&mut store, &config, ids(voters), b"founded".to_vec()).unwrap();
            group.open(store, config);
        }
        group
    }

    pub(crate) fn config(&self, id: RaftId, boot_epoch: u64) -> Config {
        let mut config = Config::new("test", 7, id);
        (config.boot_epoch, config.life) = (boot_epoch, boot_epoch);
        (self.tune)(&mut config);
        config
    }

    pub(crate) fn open(&mut self, store: FaultyStore, config: Config) {
        let id = config.id;
        self.applied.remove(&id);
        self.nodes.insert(id, Node::open(store, config).unwrap());
        self.drain(id);
    }

    pub(crate) fn join(&mut self, id: u64) {
        let config = self.config(RaftId(id), 1);
        self.open(empty_store(), config);
    }

    pub(crate) fn node(&mut self, id: u64) -> &mut Node<FaultyStore> {
        self.nodes.get_mut(&RaftId(id)).unwrap()
    }

    pub(crate) fn drain(&mut self, id: RaftId) -> Effects {
        let effects = self.nodes.get_mut(&id).unwrap().drain().unwrap();
        if let Some(snapshot) = &effects.installed_snapshot {
            self.states.insert(id, snapshot.data.clone());
            self.applied.remove(&id);
        }
        self.applied.entry(id).or_default().extend(effects.committed.clone());
        self.reads.entry(id).or_default().extend(effects.reads_ready.clone());
        self.mail.extend(effects.messages.iter().map(|envelope| Envelope::clone(envelope)));
        effects
    }

    /// Delivers until nothing is in flight.
    pub(crate) fn settle(&mut self) {
        loop {
            for id in self.nodes.keys().copied().collect::<Vec<_>>() {
                self.drain(id);
            }
            let mail = std::mem::take(&mut self.mail);
            if mail.is_empty() {
                return;
            }
            for envelope in mail {
                let bytes = envelope.encode();
                assert_eq!(Envelope::decode(&bytes).unwrap(), envelope);
                let cut = [envelope.from, envelope.to].iter().any(|id| self.cut_off.contains(id));
                if let Some(node) = self.nodes.get_mut(&envelope.to).filter(|_| !cut) {
                    node.receive(&envelope);
                }
            }
        }
    }

    pub(crate) fn tick(&mut self) {
        for node in self.nodes.values_mut() {
            node.tick();
        }
        self.settle();
    }

    pub(crate) fn ticks(&mut self, count: usize) {
        for _ in 0..count {
            self.tick();
        }
    }

    /// Ticks until a member that is not cut off is the leader and ready.
    pub(crate) fn leader(&mut self) -> u64 {
        for _ in 0..200 {
            let leads = self.nodes.values().map(Node::status).find(|status| {
                status.is_leader() && status.ready && !self.cut_off.contains(&status.id)
            });
            if let Some(status) = leads {
                return status.id.0;
            }
            self.tick();
        }
        panic!("no leader after 200 ticks");
    }

    pub(crate) fn propose(&mut self, text: &str) {
        let leader = self.leader();
        self.node(leader).propose(text.as_bytes().to_vec()).unwrap();
        self.settle();
    }

    pub(crate) fn texts(&self, id: u64) -> Vec<String> {
        let applied = self.applied.get(&RaftId(id)).map(Vec::as_slice).unwrap_or_default();
        applied.iter().map(|c| String::from_utf8(c.data.clone()).unwrap()).collect()
    }
}
