//! Which servers fetch a release before their turn to run it.
//!
//! A function of the committed state alone: the current wave is in it, and the next one is computed
//! as the planner would, with what the log knows. The leader may know more (a silent server, say)
//! and choose otherwise; servers then fetch when their wave starts.

use std::collections::BTreeSet;

use crate::ids::ServerId;
use crate::phase::WaveStep;
use crate::policy::Prestage;
use crate::reason::PausedBy;
use crate::state::{App, Pause, Rollout, State};
use crate::wave;

/// Whether a server fetches the release now; `is_next`: it is in [`expected_next`].
pub(crate) fn is_due(
    app: &App,
    rollout: &Rollout,
    server: &ServerId,
    is_next: impl FnOnce() -> bool,
) -> bool {
    // Found bad in another group: do not fetch it until an operator resumes.
    if matches!(app.pause, Some(Pause { by: PausedBy::Verdict { .. }, .. })) {
        return false;
    }
    rollout.lead == *server
        || rollout.policy.update.prestage == Prestage::All
        || current(app).is_some_and(|servers| servers.contains(server))
        || is_next()
}

/// Servers that still need the release, do not have it, and do not fetch it yet.
pub(crate) fn not_yet(state: &State, app: &App, rollout: &Rollout) -> Vec<ServerId> {
    if rollout.policy.update.prestage == Prestage::All {
        return Vec::new();
    }
    let mut servers: BTreeSet<ServerId> = app.remaining(rollout).cloned().collect();
    servers.remove(&rollout.lead);
    for due in expected_next(state, app, rollout).iter().chain(current(app).into_iter().flatten()) {
        servers.remove(due);
    }
    servers.retain(|server| !app.servers[server].has(&rollout.release.artifact));
    servers.into_iter().collect()
}

/// The servers of the wave in progress.
fn current(app: &App) -> Option<&BTreeSet<ServerId>> {
    let (servers, step) = app.phase.wave()?;
    (step != WaveStep::Baked).then_some(servers)
}

/// The next wave as it would be chosen now; empty unless the policy wants it prefetched.
pub(crate) fn expected_next(state: &State, app: &App, rollout: &Rollout) -> BTreeSet<ServerId> {
    match rollout.policy.update.prestage {
        Prestage::NextWave => {}
        Prestage::All | Prestage::Wave => return BTreeSet::new(),
    }
    let mut ready: Vec<ServerId> = app.remaining(rollout).cloned().collect();
    if let Some(servers) = current(app) {
        ready.retain(|server| !servers.contains(server));
    }
    wave::choose(state, app, rollout, &rollout.lead, &ready)
}
