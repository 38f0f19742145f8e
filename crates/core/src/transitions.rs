//! The arrows of the drawing: one function each, named after what happens.

use std::collections::BTreeSet;

use crate::command::{Event, Rejection};
use crate::ids::{AppId, ClockMs, Generation, GroupId, Revision, ServerId};
use crate::orders::Purpose;
use crate::phase::{Phase, WaveStep};
use crate::release::{Release, Rollback};
use crate::state::{
    ActivationStage, App, Debt, Ending, GOOD_MAX, HISTORY_MAX, HistoryEntry, Pause, REJECTED_MAX,
    Rejected, Rollout, State, VERDICTS_DUE_MAX, Verdict,
};

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
        remember(app, release, Ending::Adopted, "", actor, clock, clock, 0);
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
            remember(
                app,
                &old.release,
                Ending::Superseded,
                &reason,
                &old.by,
                old.started,
                clock,
                old.waves,
            );
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
        if rollout.release_failures > 0 || !by_person {
            verdict_on_failure(app, &rollout, reason);
        }
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
        remember(
            app,
            &rollout.release,
            Ending::HeldInPlace,
            reason,
            &rollout.by,
            rollout.started,
            clock,
            rollout.waves,
        );
        let to = Phase::Held {
            rejected: rollout.release.clone(),
            reason: reason.to_owned(),
            since: clock,
            in_place: Some(rollout),
        };
        Self::enter(app_id, app, to, actor, events);
    }

    pub(crate) fn pause(
        &mut self,
        app_id: &AppId,
        reason: &str,
        actor: &str,
    ) -> Result<(), Rejection> {
        let clock = self.clock;
        let app = self.app_mut(app_id)?;
        if app.phase.forward().is_none() {
            return Err(not_now(app, "no rollout goes forward"));
        }
        app.generation = app.generation.next();
        let rollout = app.phase.rollout_mut().expect("looked at above");
        rollout.pause = Some(Pause {
            by: actor.to_owned(),
            reason: reason.to_owned(),
            since: clock,
            verdict_of: None,
        });
        app.record += 1;
        Ok(())
    }

    pub(crate) fn pause_for_verdict(
        &mut self,
        app_id: &AppId,
        generation: Generation,
        group: &GroupId,
        reason: &str,
    ) -> Result<(), Rejection> {
        let clock = self.clock;
        let app = self.planned(app_id, generation)?;
        if app.phase.forward().is_none() {
            return Err(not_now(app, "no rollout goes forward"));
        }
        app.generation = app.generation.next();
        let rollout = app.phase.rollout_mut().expect("looked at above");
        if rollout.pause.is_none() && !rollout.overruled.contains(group) {
            rollout.pause = Some(Pause {
                by: format!("verdict of {group}"),
                reason: reason.to_owned(),
                since: clock,
                verdict_of: Some(group.clone()),
            });
        }
        Ok(())
    }

    pub(crate) fn resume(&mut self, app_id: &AppId) -> Result<(), Rejection> {
        let clock = self.clock;
        let app = self.app_mut(app_id)?;
        if app.phase.forward().is_none_or(|rollout| rollout.pause.is_none()) {
            return Err(not_now(app, "nothing is paused"));
        }
        app.generation = app.generation.next();
        let rollout = app.phase.rollout_mut().expect("looked at above");
        if let Some(group) = rollout.pause.take().and_then(|pause| pause.verdict_of) {
            rollout.overruled.insert(group);
        }
        rollout.progress = clock;
        app.record += 1;
        Ok(())
    }

    pub(crate) fn approve(&mut self, app_id: &AppId) -> Result<(), Rejection> {
        let clock = self.clock;
        let app = self.app_mut(app_id)?;
        match app.phase.rollout_mut() {
            Some(rollout) if rollout.policy.update.approve_after_wave > 0 => {
                rollout.approved = true;
                rollout.progress = clock;
                Ok(())
            }
            Some(_) | None => Err(not_now(app, "nothing waits for approval")),
        }
    }

    pub(crate) fn retry(&mut self, app_id: &AppId) -> Result<(), Rejection> {
        let app = self.app_mut(app_id)?;
        let mut did = false;
        for server in app.servers.values_mut() {
            if let Some(debt) = &mut server.debt {
                did |= debt.tries > 0;
                debt.tries = 0;
            }
        }
        if let Phase::Held { rejected, .. } = &app.phase {
            let rejected = rejected.clone();
            app.rejected.retain(|entry| entry.release != rejected);
            did = true;
        }
        if did {
            app.generation = app.generation.next();
            Ok(())
        } else {
            Err(not_now(app, "nothing is held and nothing is owed"))
        }
    }

    pub(crate) fn undo(
        &mut self,
        app_id: &AppId,
        lead: &ServerId,
        actor: &str,
        events: &mut Vec<Event>,
    ) -> Result<(), Rejection> {
        let clock = self.clock;
        let app = self.app_mut(app_id)?;
        if !matches!(app.phase, Phase::Running { .. }) {
            return Err(not_now(app, "only a group that runs a release can undo it; use `abort`"));
        }
        let Some(target) = app.good_before.last().cloned() else {
            return Err(not_now(app, "no release before this one is known to be good"));
        };
        let current = app.last_good.clone();
        if current.as_ref().is_some_and(|release| release.rollback == Rollback::ForwardOnly) {
            return Err(not_now(app, "the release that runs is declared forward-only"));
        }
        let revision = app.revision;
        app.rejected.retain(|entry| entry.release != target);
        self.start_rollout(app_id, &target, revision, lead, actor, events)?;
        let app = self.app_mut(app_id)?;
        if let Some(current) = current {
            reject(app, &current, &format!("undone by {actor}"), clock);
        }
        Ok(())
    }

    /// Takes every arrow that follows from what is known by now, until nothing follows any more.
    pub(crate) fn settle(&mut self, events: &mut Vec<Event>, actor: &str) {
        let clock = self.clock;
        let size = self.size();
        for (id, app) in &mut self.apps {
            while settle_app(id, app, clock, size, actor, events) {}
        }
    }
}

/// One arrow of one app, if one follows.
fn settle_app(
    id: &AppId,
    app: &mut App,
    clock: ClockMs,
    size: u32,
    actor: &str,
    events: &mut Vec<Event>,
) -> bool {
    if let Some(rollout) = app.phase.forward() {
        let policy = &rollout.policy;
        let reason = if rollout.release_failures > policy.failures_allowed_of(size) {
            Some(failure_words(rollout, crate::report::Blame::Release))
        } else if rollout.surroundings_failures > policy.surroundings_allowed_of(size) {
            Some(failure_words(rollout, crate::report::Blame::Surroundings))
        } else if nobody_left(app, rollout) {
            Some("no server is left that runs it".to_owned())
        } else {
            None
        };
        if let Some(reason) = reason {
            let rollout = Box::new(rollout.clone());
            let stays =
                rollout.release.rollback != Rollback::Revert || !rollout.policy.update.auto_revert;
            if rollout.release_failures > 0 {
                verdict_on_failure(app, &rollout, &reason);
            }
            app.generation = app.generation.next();
            if stays {
                State::hold_in_place(id, app, rollout, &reason, clock, actor, events);
            } else {
                State::roll_back(id, app, rollout, &reason, false, clock, actor, events);
            }
            return true;
        }
    }
    match &app.phase {
        Phase::Wave { rollout, number, servers, step, since } => {
            let counted = |done: &dyn Fn(&crate::state::ServerApp) -> bool| {
                servers
                    .iter()
                    .filter(|server| !rollout.lost.contains(*server))
                    .filter_map(|server| app.servers.get(server))
                    .all(done)
            };
            let release = &rollout.release;
            let finished = |server: &crate::state::ServerApp| {
                server.settled_on(Some(release)) && server.in_service
            };
            let stage = |server: &crate::state::ServerApp| {
                server.activation.as_ref().map(|activation| activation.stage.clone())
            };
            let next = match step {
                WaveStep::Assigned => counted(&|s| s.has(&release.artifact) || finished(s))
                    .then_some(WaveStep::Downloaded),
                WaveStep::Downloaded => counted(&|s| {
                    finished(s)
                        || matches!(
                            stage(s),
                            Some(ActivationStage::Applied { .. } | ActivationStage::Checked { .. })
                        )
                })
                .then_some(WaveStep::Applied),
                WaveStep::Applied => counted(&|s| {
                    finished(s) || matches!(stage(s), Some(ActivationStage::Checked { .. }))
                })
                .then_some(WaveStep::Checked),
                WaveStep::Checked => counted(&finished).then_some(WaveStep::Baking),
                WaveStep::Baking => (clock.since(*since) >= rollout.policy.update.bake_time.ms)
                    .then_some(WaveStep::Baked),
                WaveStep::Baked => None,
            };
            if let Some(step) = next {
                let to = Phase::Wave {
                    rollout: rollout.clone(),
                    number: *number,
                    servers: servers.clone(),
                    step,
                    since: clock,
                };
                State::enter(id, app, to, actor, events);
                if let Some(rollout) = app.phase.rollout_mut() {
                    rollout.progress = clock;
                }
                return true;
            }
            let baked = *step == WaveStep::Baked;
            if baked && remaining(app, rollout).is_empty() {
                let rollout = rollout.clone();
                finish(id, app, &rollout, clock, actor, events);
                return true;
            }
            false
        }
        Phase::Verified { rollout, .. } => {
            if remaining(app, rollout).is_empty() {
                let rollout = rollout.clone();
                finish(id, app, &rollout, clock, actor, events);
                return true;
            }
            false
        }
        Phase::RollingBack { rollout, reason, .. } => {
            if owing_roll_back(app, rollout).is_empty() {
                let (rollout, reason) = (rollout.clone(), reason.clone());
                hold(id, app, &rollout, &reason, clock, actor, events);
                return true;
            }
            false
        }
        Phase::Empty
        | Phase::Running { .. }
        | Phase::MarkedOld { .. }
        | Phase::LeaderHolds { .. }
        | Phase::Held { .. } => false,
    }
}

/// Whether the rollout would be through without a single server that runs its release: nothing
/// was proven, and it must not become the last good one.
fn nobody_left(app: &App, rollout: &Rollout) -> bool {
    let through = match &app.phase {
        Phase::Verified { .. } => true,
        Phase::Wave { step, .. } => *step == WaveStep::Baked,
        Phase::Empty
        | Phase::Running { .. }
        | Phase::MarkedOld { .. }
        | Phase::LeaderHolds { .. }
        | Phase::RollingBack { .. }
        | Phase::Held { .. } => false,
    };
    through
        && remaining(app, rollout).is_empty()
        && !app.servers.values().any(|server| server.settled_on(Some(&rollout.release)))
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

/// WaveBaked, Verified ─► Running: every reachable server runs it and was watched.
fn finish(
    id: &AppId,
    app: &mut App,
    rollout: &Rollout,
    clock: ClockMs,
    actor: &str,
    events: &mut Vec<Event>,
) {
    let old = app.last_good.replace(rollout.release.clone());
    if let Some(old) = old
        && old != rollout.release
    {
        app.good_before.retain(|release| *release != old && *release != rollout.release);
        let undone = app.rejection_of(&old).is_some();
        if !undone {
            app.good_before.push(old);
        }
        if app.good_before.len() > GOOD_MAX {
            app.good_before.remove(0);
        }
    }
    for server in app.servers.values_mut() {
        let good = server.running.as_ref() == app.last_good.as_ref();
        if good && server.activation.is_none() {
            server.debt = None;
        } else if server.debt.is_none() {
            let reason = "left behind by the rollout".into();
            server.debt = Some(Debt { since: clock, reason, tries: 0 });
        }
    }
    app.rejected.retain(|entry| entry.release != rollout.release);
    verdict(app, rollout, true, "");
    remember(
        app,
        &rollout.release,
        Ending::Completed,
        "",
        &rollout.by,
        rollout.started,
        clock,
        rollout.waves,
    );
    State::enter(id, app, Phase::Running { since: clock }, actor, events);
}

/// RollingBack ─► Held: every reachable server is back.
fn hold(
    id: &AppId,
    app: &mut App,
    rollout: &Rollout,
    reason: &str,
    clock: ClockMs,
    actor: &str,
    events: &mut Vec<Event>,
) {
    reject(app, &rollout.release, reason, clock);
    remember(
        app,
        &rollout.release,
        Ending::RolledBack,
        reason,
        &rollout.by,
        rollout.started,
        clock,
        rollout.waves,
    );
    let good = app.last_good.clone();
    for server in app.servers.values_mut() {
        if server.settled_on(good.as_ref()) {
            server.debt = None;
            continue;
        }
        if server.activation.as_ref().is_some_and(|activation| !activation.open()) {
            server.activation = None;
        }
        if server.debt.is_none() {
            let reason = "not reached by the roll-back".into();
            server.debt = Some(Debt { since: clock, reason, tries: 0 });
        }
    }
    let to = Phase::Held {
        rejected: rollout.release.clone(),
        reason: reason.to_owned(),
        since: clock,
        in_place: None,
    };
    State::enter(id, app, to, actor, events);
}

fn failure_words(rollout: &Rollout, blame: crate::report::Blame) -> String {
    rollout.failures.iter().find(|failure| failure.blame == blame).map_or_else(
        || "servers were lost".to_owned(),
        |failure| {
            format!("{} failed on {}: {}", failure.step.name(), failure.server, failure.reason)
        },
    )
}

fn reject(app: &mut App, release: &Release, reason: &str, clock: ClockMs) {
    app.rejected.retain(|entry| entry.release != *release);
    app.rejected.push(Rejected { release: release.clone(), reason: reason.to_owned(), at: clock });
    if app.rejected.len() > REJECTED_MAX {
        app.rejected.remove(0);
    }
}

#[allow(clippy::too_many_arguments, reason = "one line of the history, field by field")]
fn remember(
    app: &mut App,
    release: &Release,
    ending: Ending,
    reason: &str,
    by: &str,
    started: ClockMs,
    ended: ClockMs,
    waves: u32,
) {
    if app.history.len() >= HISTORY_MAX {
        app.history.pop_front();
    }
    app.history.push_back(HistoryEntry {
        version: release.version.clone(),
        ending,
        reason: reason.to_owned(),
        by: by.to_owned(),
        started,
        ended,
        waves,
    });
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
