//! Members on the production store: committed entries are still there after every restart.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::Path;

use cohort_consensus::{Config, Index, Node, NodeError, RaftId};
use cohort_store::{Identity, LogStore, RedbStore};

const MEMBERS: u64 = 3;

struct Group<'a> {
    folder: &'a Path,
    nodes: BTreeMap<RaftId, Node<RedbStore>>,
    states: BTreeMap<RaftId, Vec<String>>,
}

fn identity_of(config: &Config) -> Identity {
    Identity { group: config.group.clone(), incarnation: config.incarnation, raft_id: config.id }
}

impl Group<'_> {
    fn config(id: RaftId, boot_epoch: u64) -> Config {
        Config { boot_epoch, ..Config::new("disks", 1, id) }
    }

    fn found(&self) {
        for id in (1..=MEMBERS).map(RaftId) {
            let folder = self.folder.join(id.to_string());
            std::fs::create_dir(&folder).unwrap();
            let config = Self::config(id, 1);
            let mut store = RedbStore::create(&folder, &identity_of(&config)).unwrap();
            let voters = (1..=MEMBERS).map(RaftId);
            Node::bootstrap(&mut store, &config, voters, Vec::new()).unwrap();
            let again = Node::bootstrap(&mut store, &config, [id], Vec::new());
            assert!(matches!(again, Err(NodeError::NotEmpty)));
        }
    }

    fn start(&mut self, boot_epoch: u64) {
        for id in (1..=MEMBERS).map(RaftId) {
            let config = Self::config(id, boot_epoch);
            let folder = self.folder.join(id.to_string());
            let store = RedbStore::open(&folder, &identity_of(&config)).unwrap();
            self.nodes.insert(id, Node::open(store, config).unwrap());
        }
        self.settle();
    }

    fn settle(&mut self) {
        loop {
            let mut mail = Vec::new();
            for (id, node) in &mut self.nodes {
                let effects = node.drain().unwrap();
                let state = self.states.entry(*id).or_default();
                if let Some(snapshot) = effects.installed_snapshot {
                    let text = String::from_utf8(snapshot.data).unwrap();
                    *state = text.split_whitespace().map(str::to_owned).collect();
                }
                let texts = effects.committed.into_iter();
                state.extend(texts.map(|c| String::from_utf8(c.data).unwrap()));
                mail.extend(effects.messages);
            }
            if mail.is_empty() {
                return;
            }
            for envelope in mail {
                self.nodes.get_mut(&envelope.to).unwrap().receive(&envelope);
            }
        }
    }

    fn leader(&mut self) -> &mut Node<RedbStore> {
        for _ in 0..100 {
            if let Some(id) = self.nodes.values().find(|n| n.status().ready).map(Node::id) {
                return self.nodes.get_mut(&id).unwrap();
            }
            self.nodes.values_mut().for_each(Node::tick);
            self.settle();
        }
        panic!("no leader");
    }
}

#[test]
fn a_group_survives_restarts_of_all_its_members() {
    let folder = tempfile::tempdir().unwrap();
    let mut group =
        Group { folder: folder.path(), nodes: BTreeMap::new(), states: BTreeMap::new() };
    group.found();
    let mut expected = Vec::new();
    for boot_epoch in 1..=4 {
        group.start(boot_epoch);
        group.leader();
        for _ in 0..3 {
            let text = format!("command-{}", expected.len());
            group.leader().propose(text.clone().into_bytes()).unwrap();
            group.settle();
            expected.push(text);
        }
        group.nodes.values_mut().for_each(Node::tick);
        group.settle();
        for (id, state) in &group.states {
            assert_eq!(*state, expected, "member {id} at start {boot_epoch}");
        }
        if boot_epoch == 2 {
            for (id, node) in &mut group.nodes {
                let applied = node.status().applied;
                let state = group.states[id].join(" ").into_bytes();
                node.compact(applied, state).unwrap();
                assert!(node.store().image().snapshot().is_some_and(|s| s.index > Index(1)));
            }
        }
        group.nodes.clear();
    }
}
