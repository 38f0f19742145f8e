//! The arrows that nobody takes: they follow from what is known.

use super::{owing_roll_back, reject, remaining, remember_end, verdict, verdict_on_failure};
use crate::command::Event;
use crate::ids::{AppId, ClockMs};
use crate::phase::{Phase, WaveStep};
use crate::release::Rollback;
use crate::state::{ActivationStage, App, Debt, Ending, GOOD_MAX, Rollout, State};

impl State {
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
    remember_end(app, rollout, Ending::Completed, "", clock);
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
    remember_end(app, rollout, Ending::RolledBack, reason, clock);
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
