//! What a replay prints: faults, what happened in a group, who leads it, and why it waits.

use std::collections::{BTreeMap, BTreeSet};

use cohort_core::ids::{GroupId, ServerId};

use super::Chaos;
use crate::fleet::group::Group;

/// What a run prints.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Trace {
    /// Nothing.
    #[default]
    Off,
    /// Every group.
    Fleet,
    /// One group, and what concerns all of them.
    Group(String),
}

/// What was printed of a group.
#[derive(Debug, Default)]
pub(super) struct Told {
    events: usize,
    leader: Option<ServerId>,
    waiting: BTreeSet<String>,
}

impl Trace {
    fn shows(&self, group: &GroupId) -> bool {
        match self {
            Trace::Off => false,
            Trace::Fleet => true,
            Trace::Group(name) => name == group.as_str(),
        }
    }
}

impl Chaos {
    /// A line about the whole fleet.
    pub(super) fn say(&self, text: &str) {
        if self.trace != Trace::Off {
            println!("{:>7} ms  {text}", self.fleet.now_ms);
        }
    }

    /// A line about one group.
    pub(super) fn say_of(&self, group: &GroupId, text: &str) {
        if self.trace.shows(group) {
            println!("{:>7} ms  {group}: {text}", self.fleet.now_ms);
        }
    }

    /// Prints what changed since the last call.
    pub(super) fn tell(&mut self) {
        if self.trace == Trace::Off {
            return;
        }
        for (id, group) in self.fleet.groups.iter().filter(|(id, _)| self.trace.shows(id)) {
            let lines = self.told.entry(id.clone()).or_default().lines(group);
            for (at_ms, line) in lines {
                println!("{at_ms:>7} ms  {id}: {line}");
            }
        }
    }
}

impl Told {
    fn lines(&mut self, group: &Group) -> Vec<(u64, String)> {
        let log = &group.log;
        let news = log.events[self.events..].iter();
        let mut lines: Vec<(u64, String)> = news
            .filter_map(|happened| {
                Some((happened.at_ms, cohort_view::events::sentence(&happened.event, true)?))
            })
            .collect();
        self.events = log.events.len();
        let Some((leader, view)) = group.leader_view() else { return lines };
        if self.leader.as_ref() != Some(leader) {
            let (term, voters) = (view.raft.term, &view.raft.configuration);
            lines.push((log.now_ms, format!("{leader} leads in term {term}, of {voters}")));
            self.leader = Some(leader.clone());
        }
        let waiting: BTreeSet<String> = view
            .waiting
            .iter()
            .map(|on| format!("{} waits: {}", on.app, cohort_view::waiting::sentence(&on.on)))
            .collect();
        let fresh = waiting.difference(&self.waiting);
        lines.extend(fresh.map(|line| (log.now_ms, line.clone())));
        self.waiting = waiting;
        lines
    }
}

pub(super) type ToldByGroup = BTreeMap<GroupId, Told>;
