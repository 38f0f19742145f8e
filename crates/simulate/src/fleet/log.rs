//! A group's log as somebody knows it who sees all of its members, and what must never be seen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cohort_consensus::RaftId;
use cohort_core::State;
use cohort_core::command::{Command, Event, Rejection};
use cohort_core::ids::{GroupId, Incarnation, MemberId, ServerId};
use cohort_core::phase::PhaseName;
use cohort_server::member::View;

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
    /// Commands whose senders were told that they are applied, by entry.
    pub(crate) acknowledged: BTreeMap<u64, Command>,
    /// Servers that the hub has in this group.
    pub(crate) admitted: BTreeSet<ServerId>,
    /// Who carries each member; a number is given out once.
    pub(crate) carriers: BTreeMap<RaftId, ServerId>,
    /// Reads answered, and transfers of leadership that succeeded.
    pub(crate) reads: u64,
    /// See [`Self::reads`].
    pub(crate) transfers: u64,
    /// Events whose arrows are noted.
    noted: usize,
    states: BTreeMap<u64, Arc<State>>,
    leaders: BTreeMap<u64, RaftId>,
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
            acknowledged: BTreeMap::new(),
            admitted: BTreeSet::new(),
            carriers: BTreeMap::new(),
            reads: 0,
            transfers: 0,
            noted: 0,
            states: BTreeMap::new(),
            leaders: BTreeMap::new(),
        }
    }

    /// A member has applied an entry and this happened; it counts once.
    pub(crate) fn happened(&mut self, index: u64, event: &Event) {
        if index <= self.applied {
            return;
        }
        let (at_ms, event) = (self.now_ms, event.clone());
        self.events.push(Happened { at_ms, event, wave: None });
    }

    /// A member has something new to show after `before`.
    pub(crate) fn shown(&mut self, view: &View, before: &View) {
        let raft = &view.raft;
        if raft.is_leader() {
            let leader = *self.leaders.entry(raft.term.0).or_insert(raft.id);
            assert_eq!(leader, raft.id, "two members lead in term {}", raft.term.0);
        }
        let applied = raft.applied.0;
        if applied <= self.applied {
            if let Some(known) = self.states.get(&applied) {
                // What it has shown before was compared then.
                assert!(
                    Arc::ptr_eq(&before.state, &view.state) || *known == view.state,
                    "{} ms: member {} has another state at entry {applied}",
                    self.now_ms,
                    raft.id.0
                );
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
        assert!(applied >= floor, "{} ms: a read shows {applied}, not {floor}", self.now_ms);
        self.reads += 1;
    }

    pub(crate) fn created(&mut self, member: MemberId, server: &ServerId) {
        let before = self.carriers.insert(RaftId(member.0), server.clone());
        let own = before.as_ref().is_none_or(|before| before == server);
        assert!(own, "{} ms: {before:?} and {server} create member {member}", self.now_ms);
    }
}
