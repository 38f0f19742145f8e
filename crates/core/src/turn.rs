//! One command's turn at one app. Its methods are the arrows of the diagram, each named after what
//! happens; each either changes the app or rejects the command before changing anything.

use crate::command::{Event, Planned, Rejection, WhyNot};
use crate::ids::{AppId, ClockMs, Generation, Incarnation, Platform, ServerId};
use crate::orders::Purpose;
use crate::phase::{Milestone, Phase, PhaseName, arrow};
use crate::reason::{PausedBy, Reason};
use crate::release::Release;
use crate::state::{
    App, Ending, HISTORY_MAX, HistoryEntry, REJECTED_MAX, REMOVED_MAX, Rejected, Rollout, State,
    VERDICTS_DUE_MAX, Verdict, push_bounded,
};

mod changes;
mod course;
mod forward;
mod people;
mod reports;
mod settle;

/// What every method of a turn returns.
pub(crate) type Applied = Result<(), Rejection>;

/// An app and everything that a transition of it needs to know.
pub(crate) struct Turn<'a> {
    id: &'a AppId,
    app: &'a mut App,
    incarnation: Incarnation,
    platform: Option<&'a Platform>,
    clock: ClockMs,
    actor: &'a str,
    events: &'a mut Vec<Event>,
}

impl State {
    pub(crate) fn turn<'a>(
        &'a mut self,
        id: &'a AppId,
        actor: &'a str,
        events: &'a mut Vec<Event>,
    ) -> Result<Turn<'a>, Rejection> {
        let (incarnation, platform, clock) = (self.incarnation, self.platform.as_ref(), self.clock);
        match self.apps.get_mut(id) {
            Some(app) => Ok(Turn { id, app, incarnation, platform, clock, actor, events }),
            None => Err(Rejection::NoApp { app: id.clone() }),
        }
    }

    /// The same for a command from the leader, if it was planned against the app's generation.
    pub(crate) fn planned<'a>(
        &'a mut self,
        id: &'a AppId,
        generation: Generation,
        actor: &'a str,
        events: &'a mut Vec<Event>,
    ) -> Result<Turn<'a>, Rejection> {
        let turn = self.turn(id, actor, events)?;
        if turn.app.generation == generation {
            Ok(turn)
        } else {
            Err(Rejection::OldPlan { generation: turn.app.generation })
        }
    }

    /// Takes every arrow that needs no command: in the app that the command was about, or in every
    /// one. Which arrows an app takes does not depend on other apps.
    pub(crate) fn settle(&mut self, about: Option<&AppId>, actor: &str, events: &mut Vec<Event>) {
        let (incarnation, platform, clock) = (self.incarnation, self.platform.as_ref(), self.clock);
        let changed = |id: &AppId| about.is_none_or(|about| about == id);
        for (id, app) in self.apps.iter_mut().filter(|(id, _)| changed(id)) {
            Turn { id, app, incarnation, platform, clock, actor, events }.settle();
        }
        for (id, gone) in self.apps.extract_if(.., |_, app| app.is_gone()) {
            self.first_generation = self.first_generation.max(gone.generation.next());
            self.removed.insert(id.clone(), gone.revision);
            events.push(Event::AppRemoved { app: id });
        }
        while self.removed.len() > REMOVED_MAX {
            let oldest = self.removed.iter().min_by_key(|(_, revision)| **revision);
            let Some(app) = oldest.map(|(app, _)| app.clone()) else { break };
            self.removed.remove(&app);
        }
    }
}

impl Turn<'_> {
    /// Takes a step that the leader planned; `costs` is the result of [`State::clear`].
    pub(crate) fn take(&mut self, step: &Planned, costs: bool) -> Applied {
        match step {
            Planned::TakeLead { lead } => self.take_lead(lead),
            Planned::LeaderHolds { server } => self.leader_holds(server),
            Planned::Verify { server } => self.verify(server),
            Planned::StartWave { number, servers } => self.start_wave(*number, servers),
            Planned::WidenWave { server } => self.widen_wave(server),
            Planned::Grant { server, purpose, .. } => self.grant(server, *purpose, costs),
            Planned::Withdraw { server } => self.withdraw(server),
            Planned::LoseServer { server, silent_ms } => self.lose(server, *silent_ms),
            Planned::LeaveOut { server } => self.leave_out(server),
            Planned::FindServer { server } => self.find(server),
            Planned::Fail { reason } => self.fail(reason.clone(), false),
            Planned::PauseForVerdict { group, reason } => self.pause_for_verdict(group, reason),
            Planned::EndPause {} => self.end_pause(),
            Planned::TakeChecks { servers, .. } => {
                servers.iter().for_each(|server| self.app.take_checks(server, self.clock));
                Ok(())
            }
        }
    }

    fn not_now<T>(&self, why: WhyNot) -> Result<T, Rejection> {
        Err(Rejection::NotNow { state: self.app.phase.name(), why })
    }

    fn knows(&self, server: &ServerId) -> Applied {
        if self.app.servers.contains_key(server) {
            Ok(())
        } else {
            Err(Rejection::NoServer { server: server.clone() })
        }
    }

    fn size(&self) -> u32 {
        u32::try_from(self.app.servers.len()).unwrap_or(u32::MAX)
    }

    fn enter(&mut self, to: Phase) {
        let from = self.app.phase.name();
        self.app.phase = to;
        // Another group's verdict is about one release.
        self.app.pause.take_if(|pause| matches!(pause.by, PausedBy::Verdict { .. }));
        self.entered(from);
    }

    fn reach(&mut self, next: Milestone) {
        let from = self.app.phase.name();
        if let Phase::Forward { at, .. } = &mut self.app.phase {
            *at = next;
        }
        self.entered(from);
    }

    /// Panics if no such arrow exists; otherwise passes the transition to the registry and the log.
    fn entered(&mut self, from: PhaseName) {
        let to = self.app.phase.name();
        assert!(
            arrow(from, to).is_some(),
            "no arrow from {from} to {to}: the state machine is wrong, this replica stops"
        );
        self.app.record += 1;
        let (app, by) = (self.id.clone(), self.actor.to_owned());
        self.events.push(Event::PhaseChanged { app, from, to, by });
    }

    /// Any progress restarts `progress_deadline`.
    fn progress(&mut self) {
        if let Some(rollout) = self.app.phase.rollout_mut() {
            rollout.progress = self.clock;
        }
    }

    /// Notes progress, unless the app rolls back: a rollback may grant, and take back, again and
    /// again.
    fn progress_forward(&mut self) {
        if self.app.phase.forward().is_some() {
            self.progress();
        }
    }

    /// A server that pays a debt is not a rollback's progress until it has paid: one that never can
    /// would keep a stuck rollback from being found stuck.
    fn progress_by(&mut self, purpose: Purpose) {
        if purpose != Purpose::Debt || self.app.phase.forward().is_some() {
            self.progress();
        }
    }

    fn reject(&mut self, release: &Release, reason: Reason) {
        self.app.rejected.retain(|entry| entry.release != *release);
        let rejected = Rejected { release: release.clone(), reason, at: self.clock };
        push_bounded(&mut self.app.rejected, rejected, REJECTED_MAX);
    }

    /// Adds an ended rollout to the history.
    fn remember(&mut self, rollout: &Rollout, ending: Ending, reason: Option<Reason>) {
        let entry = HistoryEntry {
            version: rollout.release.version.clone(),
            ending,
            reason,
            by: rollout.by.clone(),
            started: rollout.started,
            ended: self.clock,
            waves: rollout.waves,
        };
        push_bounded(&mut self.app.history, entry, HISTORY_MAX);
    }

    /// Queues a verdict for the registry, replacing an older one about the same version.
    fn verdict(&mut self, release: &Release, bad: Option<Reason>) {
        let (version, platform) = (release.version.clone(), release.platform.clone());
        self.app.verdicts_due.retain(|due| due.version != version);
        let verdict = Verdict { version, platform, bad };
        push_bounded(&mut self.app.verdicts_due, verdict, VERDICTS_DUE_MAX);
    }
}
