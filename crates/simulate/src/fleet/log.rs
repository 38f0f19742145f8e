//! A group's log as somebody knows it who sees all of its members, and what must never be seen.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use cohort_consensus::{Index, RaftId, Status, Term};
use cohort_core::State;
use cohort_core::command::{Body, Command, Event, Rejection};
use cohort_core::ids::{BootEpoch, GroupId, Incarnation, MemberId, ServerId};
use cohort_core::phase::PhaseName;
use cohort_server::member::View;
use cohort_store::{Entry, Image};

use super::server::member::start_of;
use crate::digest::digest;

/// Violations that the tests look for.
pub const OTHER_STATE: &str = "has another state";
/// See [`OTHER_STATE`].
pub const OTHER_ENTRY: &str = "has applied another entry";
/// See [`OTHER_STATE`].
pub const LOST_ENTRY: &str = "leads without a committed entry";
/// See [`OTHER_STATE`].
pub const STALE_READ: &str = "answers a read";

/// See [`OTHER_STATE`].
pub const REPORTED_AGAIN: &str = "is believed again";

/// States that are kept to be compared.
const STATES_MAX: usize = 200;

#[derive(Debug, Clone)]
pub(crate) struct Happened {
    /// When the first member applied it, in milliseconds of the fleet's clock.
    pub(crate) at_ms: u64,
    /// The event, as the state machine returned it.
    pub(crate) event: Event,
    /// The wave that started with it, and its servers.
    pub(crate) wave: Option<(u32, BTreeSet<ServerId>)>,
}

/// An entry that a member has applied, and the term in which that was seen: it was committed in
/// that term, or before.
#[derive(Debug)]
struct Decided {
    entry: Entry,
    seen: Term,
}

/// What the members of a group have applied, all together.
#[derive(Debug)]
pub(crate) struct Log {
    /// The time, in milliseconds of the fleet's clock.
    pub(crate) now_ms: u64,
    /// The newest state that a member has applied.
    pub(crate) state: Arc<State>,
    pub(crate) applied: u64,
    /// Everything that happened, for scenarios and invariants.
    pub(crate) events: Vec<Happened>,
    /// The transitions taken, from and to.
    pub(crate) arrows: BTreeSet<(PhaseName, PhaseName)>,
    /// What became of the commands of persons, by number: whether the group refused it; `None`: the
    /// outcome is unknown.
    pub(crate) outcomes: BTreeMap<u64, Option<Option<Rejection>>>,
    /// Servers that the hub has in this group.
    pub(crate) admitted: BTreeSet<ServerId>,
    /// Who carries each member; a number is given out once.
    pub(crate) carriers: BTreeMap<RaftId, ServerId>,
    /// Reads answered, and transfers of leadership that succeeded.
    pub(crate) reads: u64,
    /// See [`Self::reads`].
    pub(crate) transfers: u64,
    /// Reports that are applied and not yet compared with those before: whose, and its number.
    reports: BTreeMap<u64, (ServerId, (BootEpoch, u64))>,
    /// The last report of each server that the group believed.
    believed: BTreeMap<ServerId, (BootEpoch, u64)>,
    /// Events whose arrows are noted.
    noted: usize,
    states: BTreeMap<u64, Arc<State>>,
    leaders: BTreeMap<Term, RaftId>,
    decided: BTreeMap<Index, Decided>,
    /// Of everything that members have shown, and when.
    pub(crate) digest: u64,
}

/// An entry, to be read.
struct Text<'a>(&'a Entry);

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Entry { index, term, data, .. } = self.0;
        write!(f, "{index} of term {term} ({})", String::from_utf8_lossy(data))
    }
}

impl Log {
    pub(crate) fn new(group: GroupId) -> Log {
        Log {
            now_ms: 0,
            state: Arc::new(State::new(group, Incarnation(1))),
            applied: 0,
            events: Vec::new(),
            arrows: BTreeSet::new(),
            outcomes: BTreeMap::new(),
            admitted: BTreeSet::new(),
            carriers: BTreeMap::new(),
            reads: 0,
            transfers: 0,
            reports: BTreeMap::new(),
            believed: BTreeMap::new(),
            noted: 0,
            states: BTreeMap::new(),
            leaders: BTreeMap::new(),
            decided: BTreeMap::new(),
            digest: 0,
        }
    }

    /// A member has applied an entry and this happened; it counts once.
    pub(crate) fn happened(&mut self, index: u64, event: &Event) {
        if index <= self.applied {
            return;
        }
        if matches!(event, Event::ReportIgnored { .. }) {
            self.changed_nothing(index);
        }
        let (at_ms, event) = (self.now_ms, event.clone());
        self.events.push(Happened { at_ms, event, wave: None });
    }

    /// A member that has this log has something new to show after `before`.
    pub(crate) fn shown(&mut self, view: &View, before: &View, image: &Image) {
        let raft = &view.raft;
        let leader = raft.leader.map_or(0, |leader| leader.0);
        for number in [self.now_ms, raft.id.0, raft.term.0, leader, raft.commit.0, raft.applied.0] {
            self.digest = digest(self.digest, &number.to_le_bytes());
        }
        if raft.is_leader() && self.leaders.get(&raft.term) != Some(&raft.id) {
            let other = self.leaders.insert(raft.term, raft.id);
            assert_eq!(other, None, "two members lead in term {}", raft.term.0);
            self.check_leader(raft, image);
        }
        let applied = raft.applied.0;
        if applied <= self.applied {
            if let Some(known) = self.states.get(&applied) {
                // What it has shown before was compared then.
                let same = Arc::ptr_eq(&before.state, &view.state) || *known == view.state;
                assert!(same, "{} ms: {} {OTHER_STATE} at {applied}", self.now_ms, raft.id.0);
            }
            return;
        }
        // In a debug build the member has checked this after every entry.
        if !cfg!(debug_assertions)
            && let Err(broken) = view.state.check()
        {
            panic!("{} ms, at entry {applied}: {broken}", self.now_ms);
        }
        self.applied = applied;
        self.state = Arc::clone(&view.state);
        self.states.insert(applied, Arc::clone(&view.state));
        if self.states.len() > STATES_MAX {
            self.states.pop_first();
        }
        self.note_arrows();
        self.check_reports();
    }

    /// Each report of a server is believed once, and none that is older than the last one.
    fn check_reports(&mut self) {
        for (index, (server, number)) in std::mem::take(&mut self.reports) {
            let last = self.believed.insert(server.clone(), number);
            let news = last.is_none_or(|last| last < number);
            let now_ms = self.now_ms;
            assert!(news, "{now_ms} ms: report {number:?} of {server} {REPORTED_AGAIN} at {index}");
        }
    }

    /// The group rejected an entry, or ignored the report in it.
    pub(crate) fn changed_nothing(&mut self, index: u64) {
        self.reports.remove(&index);
    }

    /// A member has applied what its log has after `from`; the others have applied the same.
    pub(crate) fn applied(&mut self, raft: &Status, from: Index, image: &Image) {
        let (now_ms, id) = (self.now_ms, raft.id.0);
        for entry in image.entries(from.next(), raft.applied.next()) {
            let known = self.decided.entry(entry.index).or_insert_with(|| {
                self.digest = digest(self.digest, &entry.data);
                // A membership change, and the first entry of a term, are no commands.
                if let Ok(Command { body: Body::Report { report }, .. }) =
                    serde_json::from_slice(&entry.data)
                {
                    let number = (start_of(report.boot_epoch), report.sequence);
                    self.reports.insert(entry.index.0, (report.server, number));
                }
                Decided { entry: entry.clone(), seen: raft.term }
            });
            let known = &known.entry;
            let (this, that) = (Text(entry), Text(known));
            assert!(known == entry, "{now_ms} ms: {id} {OTHER_ENTRY}: {this}, not {that}");
        }
    }

    /// Checks that a new leader has everything that was committed before its term.
    fn check_leader(&self, raft: &Status, image: &Image) {
        let (now_ms, id) = (self.now_ms, raft.id.0);
        let decided = self.decided.range(image.first_index()..);
        for (index, Decided { entry, .. }) in decided.filter(|(_, known)| known.seen < raft.term) {
            let kept = image.entry(*index) == Some(entry);
            assert!(kept, "{now_ms} ms: {id} {LOST_ENTRY}: {}", Text(entry));
        }
    }

    /// The sender of a command is told that it has taken effect.
    pub(crate) fn acknowledged(&self, command: &Command) {
        let data = serde_json::to_vec(command).expect("a command has text keys only");
        let mut newest = self.decided.values().rev();
        let kept = newest.any(|known| known.entry.data == data);
        assert!(kept, "{} ms: {command:?} is in no log", self.now_ms);
    }

    fn note_arrows(&mut self) {
        for happened in &mut self.events[self.noted..] {
            let Event::PhaseChanged { app, from, to, .. } = &happened.event else { continue };
            self.arrows.insert((*from, *to));
            let phase = self.state.apps.get(app).map(|app| &app.phase);
            if *to == PhaseName::WAVE_ASSIGNED
                && let Some(phase) = phase
                && let (Some(rollout), Some((servers, _))) = (phase.rollout(), phase.wave())
            {
                happened.wave = Some((rollout.waves, servers.clone()));
            }
        }
        self.noted = self.events.len();
    }

    /// A read that began when everything up to `floor` was applied somewhere shows `view`.
    pub(crate) fn read(&mut self, floor: u64, view: &View) {
        let applied = view.raft.applied.0;
        let (now_ms, id) = (self.now_ms, view.raft.id.0);
        assert!(applied >= floor, "{now_ms} ms: {id} {STALE_READ} at {applied}, not {floor}");
        self.reads += 1;
    }

    pub(crate) fn created(&mut self, member: MemberId, server: &ServerId) {
        let before = self.carriers.insert(RaftId(member.0), server.clone());
        let own = before.as_ref().is_none_or(|before| before == server);
        assert!(own, "{} ms: {before:?} and {server} create member {member}", self.now_ms);
    }
}
