//! The arrows of the drawing: one function each, named after what happens.

use std::collections::BTreeSet;

use crate::command::{Event, Rejection};
use crate::ids::{AppId, ClockMs, Generation, Revision, ServerId};
use crate::orders::Purpose;
use crate::phase::{Phase, WaveStep};
use crate::release::{Release, Rollback};
use crate::state::{
    App, Ending, HISTORY_MAX, HistoryEntry, REJECTED_MAX, Rejected, Rollout, State,
    VERDICTS_DUE_MAX, Verdict,
};

mod people;
mod settle;

fn not_now(app: &App, why: &str) -> Rejection {
    Rejection::NotNow { state: app.phase.name(), why: why.into() }
}

impl State {
    /// Empty ─► Running: every server was found to run the same release.
    pub(crate) fn adopt(
        &mut self,
        app_id: &AppId,
        release: &Release,
        actor: &str,
        events: &mut Vec<Event>,
    ) -> Result<(), Rejection> {
        let clock = self.clock;
        let app = self.app_mut(app_id)?;
        if app.phase != Phase::Empty {
            return Err(not_now(app, "only an empty group adopts what is installed"));
        }
        if app.servers.is_empty() || app.servers.values().any(|s| !s.settled_on(Some(release))) {
            return Err(not_now(app, "not every server runs that release"));
        }
        app.last_good = Some(release.clone());
        let (version, by) = (release.version.clone(), actor.to_owned());
        let (ending, reason) = (Ending::Adopted, String::new());
        let entry =
            HistoryEntry { version, ending, reason, by, started: clock, ended: clock, waves: 0 };
        remember(app, entry);
        Self::enter(app_id, app, Phase::Running { since: clock }, actor, events);
        Ok(())
    }

    /// Anything ─► MarkedOld: a release is to go through the group.
    pub(crate) fn start_rollout(
        &mut self,
        app_id: &AppId,
        release: &Release,
        revision: Revision,
        lead: &ServerId,
        actor: &str,
        events: &mut Vec<Event>,
    ) -> Result<(), Rejection> {
        let clock = self.clock;
        if !self.servers.contains_key(lead) {
            return Err(Rejection::NoServer { server: lead.clone() });
        }
        if self.platform.as_ref() != Some(&release.platform) {
            let app = self.app_mut(app_id)?;
            return Err(not_now(app, "the release is for another platform"));
        }
        let app = self.app_mut(app_id)?;
        if app.revision != revision {
            return Err(not_now(app, "the policy changed meanwhile"));
        }
        if app.rejection_of(release).is_some() {
            return Err(not_now(app, "the release is rejected in this group"));
        }
        if app.in_flight().any(|(id, _)| app.servers[id].debt.is_none()) {
            return Err(not_now(app, "a server is in the middle of a change"));
        }
        if matches!(app.phase, Phase::RollingBack { .. }) {
            return Err(not_now(app, "the group goes back first"));
        }
        let settled = app.servers.values().all(|s| s.settled_on(Some(release)));
        if matches!(app.phase, Phase::Running { .. }) && settled {
            return Err(not_now(app, "every server runs it already"));
        }
        if let Some(old) = app.phase.forward().cloned() {
            if old.release == *release {
                return Err(not_now(app, "it is being rolled out already"));
            }
            let reason = format!("{} took its place", release.version);
            remember_end(app, &old, Ending::Superseded, &reason, clock);
        }
        app.generation = app.generation.next();
        for server in app.servers.values_mut() {
            // What failed under the plan before is no obstacle to this one. What a lost server may
            // still be doing stays known, until it says how it ended or is told something else.
            if server.activation.as_ref().is_some_and(|activation| !activation.open()) {
                server.activation = None;
            }
        }
        let rollout = Rollout {
            release: release.clone(),
            policy: app.policy.clone(),
            revision,
            by: actor.to_owned(),
            started: clock,
            lead: lead.clone(),
            waves: 0,
            pause: None,
            approved: false,
            release_failures: 0,
            surroundings_failures: 0,
            failures: Vec::new(),
            progress: clock,
            lost: BTreeSet::new(),
            overruled: BTreeSet::new(),
        };
        // Marked in the registry anew, also where the group was marked for another release.
        app.record += 1;
        let to = Phase::MarkedOld { rollout: Box::new(rollout), recorded: false };
        Self::enter(app_id, app, to, actor, events);
        Ok(())
    }

    /// Another leader goes on; its server is the one that fetches from a mirror.
    pub(crate) fn take_lead(
        &mut self,
        app_id: &AppId,
        generation: Generation,
        lead: &ServerId,
    ) -> Result<(), Rejection> {
        if !self.servers.contains_key(lead) {
            return Err(Rejection::NoServer { server: lead.clone() });
        }
        let app = self.planned(app_id, generation)?;
        match app.phase.rollout_mut() {
            Some(rollout) => rollout.lead = lead.clone(),
            None => return Err(not_now(app, "no rollout")),
        }
        Ok(())
    }

    /// MarkedOld ─► LeaderHolds: the registry has it, and the leader's server every byte.
    pub(crate) fn leader_holds(
        &mut self,
        app_id: &AppId,
        generation: Generation,
        server: &ServerId,
        actor: &str,
        events: &mut Vec<Event>,
    ) -> Result<(), Rejection> {
        let app = self.planned(app_id, generation)?;
        let Phase::MarkedOld { rollout, recorded } = &app.phase else {
            return Err(not_now(app, "the leader's copy is no news"));
        };
        if !recorded {
            return Err(not_now(app, "the registry does not have the group's record yet"));
        }
        if !app.servers.get(server).is_some_and(|s| s.has(&rollout.release.artifact)) {
            return Err(not_now(app, "the server has not reported the bytes"));
        }
        let to = Phase::LeaderHolds { rollout: rollout.clone(), server: server.clone() };
        Self::enter(app_id, app, to, actor, events);
        Ok(())
    }

    /// LeaderHolds ─► Verified: signature and every byte are right, by the leader's own work.
    pub(crate) fn verify(
        &mut self,
        app_id: &AppId,
        generation: Generation,
        server: &ServerId,
        actor: &str,
        events: &mut Vec<Event>,
    ) -> Result<(), Rejection> {
        let app = self.planned(app_id, generation)?;
        let Phase::LeaderHolds { rollout, .. } = &app.phase else {
            return Err(not_now(app, "nothing to verify"));
        };
        if !app.servers.get(server).is_some_and(|s| s.has(&rollout.release.artifact)) {
            return Err(not_now(app, "the server has not reported the bytes"));
        }
        let to = Phase::Verified { rollout: rollout.clone(), server: server.clone() };
        Self::enter(app_id, app, to, actor, events);
        Ok(())
    }

    /// Verified, WaveBaked ─► WaveAssigned: the next wave.
    pub(crate) fn start_wave(
        &mut self,
        app_id: &AppId,
        generation: Generation,
        number: u32,
        servers: &BTreeSet<ServerId>,
        actor: &str,
        events: &mut Vec<Event>,
    ) -> Result<(), Rejection> {
        let clock = self.clock;
        let app = self.planned(app_id, generation)?;
        let rollout = match &app.phase {
            Phase::Verified { rollout, .. }
            | Phase::Wave { rollout, step: WaveStep::Baked, .. } => rollout,
            Phase::Empty
            | Phase::Running { .. }
            | Phase::MarkedOld { .. }
            | Phase::LeaderHolds { .. }
            | Phase::Wave { .. }
            | Phase::RollingBack { .. }
            | Phase::Held { .. } => return Err(not_now(app, "the wave before is not done")),
        };
        if rollout.pause.is_some() {
            return Err(not_now(app, "the rollout is paused"));
        }
        if waits_for_approval(rollout) {
            return Err(not_now(app, "it waits for approval"));
        }
        if number != rollout.waves + 1 {
            return Err(not_now(app, "that is not the next wave"));
        }
        let open = remaining(app, rollout);
        if servers.is_empty() || !servers.is_subset(&open) {
            return Err(not_now(app, "the wave holds servers that have nothing to do"));
        }
        let mut rollout = rollout.clone();
        rollout.waves = number;
        rollout.progress = clock;
        let to = Phase::Wave {
            rollout,
            number,
            servers: servers.clone(),
            step: WaveStep::Assigned,
            since: clock,
        };
        Self::enter(app_id, app, to, actor, events);
        Ok(())
    }

    /// Any failure, or a person: back to what was good, or held in place.
    pub(crate) fn fail(
        &mut self,
        app_id: &AppId,
        reason: &str,
        by_person: bool,
        actor: &str,
        events: &mut Vec<Event>,
    ) -> Result<(), Rejection> {
        let clock = self.clock;
        let app = self.app_mut(app_id)?;
        if let Phase::RollingBack { by_person: person, .. } = &mut app.phase
            && by_person
        {
            // From now on it goes on under the kill switch as well.
            *person = true;
            return Ok(());
        }
        let rollout = match &app.phase {
            Phase::MarkedOld { rollout, .. }
            | Phase::LeaderHolds { rollout, .. }
            | Phase::Verified { rollout, .. }
            | Phase::Wave { rollout, .. } => rollout.clone(),
            Phase::Held { in_place: Some(rollout), .. } if by_person => rollout.clone(),
            Phase::Empty
            | Phase::Running { .. }
            | Phase::RollingBack { .. }
            | Phase::Held { .. } => {
                return Err(not_now(app, "no rollout is going on"));
            }
        };
        let stays = match rollout.release.rollback {
            Rollback::ForwardOnly | Rollback::Freeze => true,
            Rollback::Revert => !rollout.policy.update.auto_revert,
        };
        // A person may take a frozen release back; one that only goes forward nobody can.
        let forced = by_person && rollout.release.rollback != Rollback::ForwardOnly;
        if stays && !forced && matches!(app.phase, Phase::Held { .. }) {
            return Err(not_now(app, "the release is declared forward-only"));
        }
        verdict_on_failure(app, &rollout, reason);
        app.generation = app.generation.next();
        if stays && !forced {
            Self::hold_in_place(app_id, app, rollout, reason, clock, actor, events);
        } else {
            Self::roll_back(app_id, app, rollout, reason, by_person, clock, actor, events);
        }
        Ok(())
    }

    #[allow(clippy::too_many_arguments, reason = "one arrow, with all that it writes down")]
    fn roll_back(
        app_id: &AppId,
        app: &mut App,
        mut rollout: Box<Rollout>,
        reason: &str,
        by_person: bool,
        clock: ClockMs,
        actor: &str,
        events: &mut Vec<Event>,
    ) {
        let good = app.last_good.clone();
        for server in app.servers.values_mut() {
            let untouched = server.running == good
                && (server.in_service || good.is_none())
                && server.activation.as_ref().is_some_and(|a| !a.open());
            if untouched {
                server.activation = None;
            }
        }
        // Who failed can be reached; who cannot is found lost again by the planner.
        rollout.lost.clear();
        let to = Phase::RollingBack { rollout, reason: reason.to_owned(), by_person, since: clock };
        Self::enter(app_id, app, to, actor, events);
    }

    fn hold_in_place(
        app_id: &AppId,
        app: &mut App,
        rollout: Box<Rollout>,
        reason: &str,
        clock: ClockMs,
        actor: &str,
        events: &mut Vec<Event>,
    ) {
        reject(app, &rollout.release, reason, clock);
        remember_end(app, &rollout, Ending::HeldInPlace, reason, clock);
        let to = Phase::Held {
            rejected: rollout.release.clone(),
            reason: reason.to_owned(),
            since: clock,
            in_place: Some(rollout),
        };
        Self::enter(app_id, app, to, actor, events);
    }
}

/// The rollout waits for a person after the wave that was named.
pub(crate) fn waits_for_approval(rollout: &Rollout) -> bool {
    let after = rollout.policy.update.approve_after_wave;
    after > 0 && rollout.waves >= after && !rollout.approved
}

/// Servers that the rollout still has to take to its release.
#[must_use]
pub(crate) fn remaining(app: &App, rollout: &Rollout) -> BTreeSet<ServerId> {
    app.servers
        .iter()
        .filter(|(id, server)| {
            let through = server.settled_on(Some(&rollout.release)) && server.in_service;
            !through && !rollout.lost.contains(*id)
        })
        .map(|(id, _)| id.clone())
        .collect()
}

/// Servers that a roll-back still has to take to `last_good`.
#[must_use]
pub(crate) fn owing_roll_back(app: &App, rollout: &Rollout) -> BTreeSet<ServerId> {
    let good = app.last_good.as_ref();
    let owes = |server: &crate::state::ServerApp| match good {
        Some(_) => !server.settled_on(good),
        // Nothing was ever good in the whole group: only what this rollout touched is taken back,
        // and what runs elsewhere is left alone.
        None => server.activation.is_some() || server.running.as_ref() == Some(&rollout.release),
    };
    app.servers
        .iter()
        .filter(|(id, server)| !rollout.lost.contains(*id) && owes(server))
        .map(|(id, _)| id.clone())
        .collect()
}

fn reject(app: &mut App, release: &Release, reason: &str, clock: ClockMs) {
    app.rejected.retain(|entry| entry.release != *release);
    app.rejected.push(Rejected { release: release.clone(), reason: reason.to_owned(), at: clock });
    if app.rejected.len() > REJECTED_MAX {
        app.rejected.remove(0);
    }
}

/// A rollout has ended: a line of the history.
fn remember_end(app: &mut App, rollout: &Rollout, ending: Ending, reason: &str, ended: ClockMs) {
    let entry = HistoryEntry {
        version: rollout.release.version.clone(),
        ending,
        reason: reason.to_owned(),
        by: rollout.by.clone(),
        started: rollout.started,
        ended,
        waves: rollout.waves,
    };
    remember(app, entry);
}

fn remember(app: &mut App, entry: HistoryEntry) {
    if app.history.len() >= HISTORY_MAX {
        app.history.pop_front();
    }
    app.history.push_back(entry);
}

fn verdict_on_failure(app: &mut App, rollout: &Rollout, reason: &str) {
    if rollout.release_failures > 0 {
        verdict(app, rollout, false, reason);
    }
}

fn verdict(app: &mut App, rollout: &Rollout, good: bool, reason: &str) {
    app.verdicts_due.retain(|due| due.version != rollout.release.version);
    app.verdicts_due.push(Verdict {
        version: rollout.release.version.clone(),
        platform: rollout.release.platform.clone(),
        good,
        reason: reason.to_owned(),
    });
    if app.verdicts_due.len() > VERDICTS_DUE_MAX {
        app.verdicts_due.remove(0);
    }
}

/// Whether a purpose belongs to a rollout going forward: its failures count against the budgets.
pub(crate) fn counts(purpose: Purpose) -> bool {
    purpose == Purpose::Wave
}
