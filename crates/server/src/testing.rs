//! Three members in one thread, over simulated disks and a network that can be partitioned.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cohort_consensus::{Config, Envelope, Node, RaftId};
use cohort_core::command::COMMAND_VERSION;
use cohort_core::ids::{GroupId, Incarnation, MemberId, ServerId};
use cohort_core::state::Process;
use cohort_core::{Body, Command, State};
use cohort_store::{Disk, FaultyStore};

use crate::contacts::Contacts;
use crate::member::{Input, Member, MemberError, Output, Proposed, Ticket, TransferFailure, View};
use crate::membership::{Founder, founding_state};

pub(crate) const TICK_MS: u64 = 50;
/// Few: a test that compacts writes more.
pub(crate) const ENTRIES_BEFORE_SNAPSHOT: u64 = 30;

pub(crate) struct Group {
    pub(crate) now_ms: u64,
    pub(crate) members: BTreeMap<u64, Member<FaultyStore>>,
    pub(crate) disks: BTreeMap<u64, Disk>,
    pub(crate) boots: u64,
    pub(crate) contacts: Contacts,
    /// Partitioned from all others.
    pub(crate) cut: BTreeSet<u64>,
    pub(crate) mail: Vec<Envelope>,
    /// All outputs except messages and views, per member.
    pub(crate) said: BTreeMap<u64, Vec<Output>>,
    pub(crate) views: BTreeMap<u64, Arc<View>>,
    pub(crate) next_ticket: u64,
}

pub(crate) fn server(n: u64) -> ServerId {
    ServerId::new(format!("s{n}")).unwrap()
}

pub(crate) fn command(body: Body) -> Command {
    let (version, incarnation) = (COMMAND_VERSION, Incarnation(1));
    Command { version, incarnation, actor: "test".into(), request: None, body }
}

pub(crate) fn add(n: u64) -> Body {
    let (address, process) = (format!("{}:1", server(n)), Process::default());
    Body::AddServer { server: server(n), address, rack: None, process }
}

pub(crate) fn state(members: u64) -> State {
    let founder = Founder {
        server: server(1),
        address: "s1:1".into(),
        rack: None,
        process: Process::default(),
        labels: BTreeMap::new(),
        platform: "intel".parse().unwrap(),
    };
    let mut state = founding_state(GroupId::new("web").unwrap(), Incarnation(1), founder);
    for n in 2..=members {
        state.apply(&command(add(n))).unwrap();
        state.apply(&command(Body::AllocateMember { server: server(n) })).unwrap();
    }
    state
}

impl Group {
    pub(crate) fn of(members: u64) -> Group {
        let mut group = Group {
            now_ms: 1_000,
            members: BTreeMap::new(),
            disks: BTreeMap::new(),
            boots: 0,
            contacts: Contacts::default(),
            cut: BTreeSet::new(),
            mail: Vec::new(),
            said: BTreeMap::new(),
            views: BTreeMap::new(),
            next_ticket: 0,
        };
        let data = serde_json::to_vec(&state(members)).unwrap();
        for n in 1..=members {
            let disk = Disk::new();
            let mut store = FaultyStore::open(&disk).unwrap();
            let config = Config::new("web", 1, RaftId(n));
            let voters = (1..=members).map(RaftId);
            Node::bootstrap(&mut store, &config, voters, data.clone()).unwrap();
            group.disks.insert(n, disk);
            group.start(n);
        }
        group
    }

    /// A group with a leader; returns both.
    pub(crate) fn led(members: u64) -> (Group, u64) {
        let mut group = Group::of(members);
        group.run_ms(3_000);
        let leader = group.leader().expect("a leader within 3 s");
        (group, leader)
    }

    pub(crate) fn start(&mut self, n: u64) {
        self.boots += 1;
        let mut config = Config::new("web", 1, RaftId(n));
        config.boot_epoch = self.boots;
        config.limits.entries_before_snapshot = ENTRIES_BEFORE_SNAPSHOT;
        let store = FaultyStore::open(&self.disks[&n]).unwrap();
        let name = GroupId::new("web").unwrap();
        let member = Member::open(self.now_ms, server(n), name, store, config, None).unwrap();
        self.members.insert(n, member);
    }

    pub(crate) fn leader(&self) -> Option<u64> {
        let leads = |n: &u64| self.views.get(n).is_some_and(|view| view.leads());
        self.members.keys().copied().filter(|n| !self.cut.contains(n)).find(leads)
    }

    pub(crate) fn follower(&self) -> u64 {
        let leader = self.leader();
        self.members.keys().copied().find(|n| Some(*n) != leader).unwrap()
    }

    pub(crate) fn try_step(&mut self, n: u64, inputs: Vec<Input>) -> Result<(), MemberError> {
        let Some(member) = self.members.get_mut(&n) else { return Ok(()) };
        for output in member.step(self.now_ms, &self.contacts, inputs)? {
            match output {
                Output::Send(envelope) => self.mail.push(*envelope),
                Output::View(view) => {
                    self.views.insert(n, view);
                }
                Output::Stopped => {
                    self.members.remove(&n);
                    self.said.entry(n).or_default().push(Output::Stopped);
                }
                other => self.said.entry(n).or_default().push(other),
            }
        }
        Ok(())
    }

    pub(crate) fn step(&mut self, n: u64, inputs: Vec<Input>) {
        self.try_step(n, inputs).unwrap();
        self.settle();
    }

    /// Delivers messages and takes due steps until nothing changes.
    pub(crate) fn settle(&mut self) {
        for _ in 0..10_000 {
            let now_ms = self.now_ms;
            let due = |member: &Member<FaultyStore>| member.wake_ms(now_ms) <= now_ms;
            let next = self.members.iter().find(|(_, member)| due(member)).map(|(n, _)| *n);
            if let Some(n) = next {
                self.try_step(n, Vec::new()).unwrap();
            } else if self.mail.is_empty() {
                return;
            } else {
                let envelope = self.mail.remove(0);
                let (from, to) = (envelope.from.0, envelope.to.0);
                if !self.cut.contains(&from) && !self.cut.contains(&to) {
                    self.try_step(to, vec![Input::Received(Box::new(envelope))]).unwrap();
                }
            }
        }
        panic!("the members never rest");
    }

    pub(crate) fn run_ms(&mut self, ms: u64) {
        for _ in 0..ms / TICK_MS {
            self.now_ms += TICK_MS;
            self.settle();
        }
    }

    pub(crate) fn ticket(&mut self) -> Ticket {
        self.next_ticket += 1;
        Ticket(self.next_ticket)
    }

    pub(crate) fn propose(&mut self, n: u64, body: Body) -> Ticket {
        let ticket = self.ticket();
        self.step(n, vec![Input::Propose { ticket, command: Box::new(command(body)) }]);
        ticket
    }

    pub(crate) fn outcome(&self, n: u64, ticket: Ticket) -> Option<&Proposed> {
        self.said.get(&n)?.iter().find_map(|output| match output {
            Output::Answer { ticket: of, outcome } if *of == ticket => Some(outcome),
            _ => None,
        })
    }

    pub(crate) fn read(&mut self, n: u64) -> Ticket {
        let ticket = self.ticket();
        self.step(n, vec![Input::Read { ticket }]);
        ticket
    }

    pub(crate) fn fresh(&self, n: u64, read: Ticket) -> Option<bool> {
        self.said.get(&n)?.iter().find_map(|output| match output {
            Output::Read { ticket, fresh } if *ticket == read => Some(*fresh),
            _ => None,
        })
    }

    pub(crate) fn transfer(&mut self, n: u64, to: Option<u64>) -> Ticket {
        let ticket = self.ticket();
        self.step(n, vec![Input::Transfer { ticket, to: to.map(RaftId) }]);
        ticket
    }

    pub(crate) fn transferred(
        &self,
        n: u64,
        transfer: Ticket,
    ) -> Option<&Result<RaftId, TransferFailure>> {
        self.said.get(&n)?.iter().find_map(|output| match output {
            Output::Transferred { ticket, outcome } if *ticket == transfer => Some(outcome),
            _ => None,
        })
    }

    pub(crate) fn claim(&mut self, n: u64, of: u64, member: u64) -> Option<bool> {
        let ticket = self.ticket();
        let (server, member) = (server(of), MemberId(member));
        self.step(n, vec![Input::Claim { ticket, server, member }]);
        let answer = self.said[&n].iter().find_map(|output| match output {
            Output::Claimed { ticket: of, granted } if *of == ticket => Some(*granted),
            _ => None,
        });
        answer.expect("answered at once")
    }
}
