//! Which servers fetch a release before it is their turn to run it.
//!
//! Everything here is a function of the committed state: who is in the wave under way stands in it,
//! and who comes next is the planner's own choice, made with what the log knows. Where the leader
//! knows more (a server that does not answer), the next wave may turn out otherwise; its servers then
//! fetch when it begins, and what the others have stays on their disks for their turn.

use std::collections::BTreeSet;

use crate::ids::ServerId;
use crate::phase::{Phase, WaveStep};
use crate::policy::Prestage;
use crate::state::{App, Rollout, State};
use crate::transitions::remaining;
use crate::wave;

/// Whether a server fetches the release of a rollout that goes forward now.
pub(crate) fn is_due(state: &State, app: &App, rollout: &Rollout, server: &ServerId) -> bool {
    // Found bad in another group: nobody wants the bytes until a person says otherwise.
    if rollout.pause.as_ref().is_some_and(|pause| pause.verdict_of.is_some()) {
        return false;
    }
    if rollout.lead == *server || rollout.policy.update.prestage == Prestage::All {
        return true;
    }
    under_way(app).is_some_and(|servers| servers.contains(server))
        || expected_next(state, app, rollout).contains(server)
}

/// Servers that still have to run the release, do not have it, and do not fetch it yet.
pub(crate) fn not_yet(state: &State, app: &App, rollout: &Rollout) -> Vec<ServerId> {
    if rollout.policy.update.prestage == Prestage::All {
        return Vec::new();
    }
    let next = expected_next(state, app, rollout);
    let wave = under_way(app);
    remaining(app, rollout)
        .into_iter()
        .filter(|server| {
            *server != rollout.lead
                && !next.contains(server)
                && !wave.is_some_and(|servers| servers.contains(server))
                && !app.servers.get(server).is_some_and(|here| here.has(&rollout.release.artifact))
        })
        .collect()
}

/// The servers of the wave under way; one that has baked is over.
fn under_way(app: &App) -> Option<&BTreeSet<ServerId>> {
    match &app.phase {
        Phase::Wave { servers, step, .. } if *step != WaveStep::Baked => Some(servers),
        Phase::Empty
        | Phase::Running { .. }
        | Phase::MarkedOld { .. }
        | Phase::LeaderHolds { .. }
        | Phase::Verified { .. }
        | Phase::Wave { .. }
        | Phase::RollingBack { .. }
        | Phase::Held { .. } => None,
    }
}

/// The wave after the one under way, as it would be chosen now; nothing unless it is wanted early.
fn expected_next(state: &State, app: &App, rollout: &Rollout) -> BTreeSet<ServerId> {
    match rollout.policy.update.prestage {
        Prestage::NextWave => {}
        Prestage::All | Prestage::Wave => return BTreeSet::new(),
    }
    let mut open = remaining(app, rollout);
    if let Some(servers) = under_way(app) {
        open.retain(|server| !servers.contains(server));
    }
    let ready: Vec<ServerId> = open.into_iter().collect();
    let size = rollout.policy.update.max_parallel.of_wave(rollout.waves + 1, state.size());
    wave::choose(state, &rollout.lead, &ready, size)
}
