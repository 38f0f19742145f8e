//! `cohort events`: what happened in a group, for people.

use cohort_core::Event;
use cohort_core::ids::AppId;
use cohort_core::orders::Purpose;
use cohort_core::phase::{MilestoneName, PhaseName};

use crate::words::line;

/// The app that an event is about; `None`: the group.
#[must_use]
pub fn app_of(event: &Event) -> Option<&AppId> {
    match event {
        Event::PhaseChanged { app, .. }
        | Event::Granted { app, .. }
        | Event::Withdrawn { app, .. }
        | Event::ServerFailed { app, .. }
        | Event::HookIgnored { app, .. }
        | Event::ServerLost { app, .. }
        | Event::ServerLeftOut { app, .. }
        | Event::AppRemoved { app }
        | Event::Steered { app, .. }
        | Event::ServerDone { app, .. } => Some(app),
        Event::ReportIgnored { .. }
        | Event::RequestRepeated { .. }
        | Event::ServerJoined { .. }
        | Event::ServerMoved { .. }
        | Event::ServerRemoved { .. } => None,
    }
}

/// An event for readers; without `steps`, only what moves a group. `None`: nothing to tell.
#[must_use]
pub fn sentence(event: &Event, steps: bool) -> Option<String> {
    match event {
        Event::PhaseChanged { from, to, .. } => {
            let begins = *to == PhaseName::WAVE_ASSIGNED;
            let inner = matches!(to, PhaseName::Forward(MilestoneName::Wave(_))) && !begins;
            (steps || !inner).then(|| format!("{from} → {to}"))
        }
        Event::Granted { server, generation, purpose, .. } => {
            let purpose = match purpose {
                Purpose::Wave => "wave",
                Purpose::RollBack => "roll-back",
                Purpose::Debt => "debt",
            };
            steps.then(|| format!("{server} may change ({purpose}, generation {generation})"))
        }
        Event::Withdrawn { server, .. } => steps.then(|| format!("{server} may no longer change")),
        Event::ServerFailed { server, reason, .. } => {
            Some(line(&format!("{server} failed: {reason}")))
        }
        Event::HookIgnored { server, reason, .. } => {
            Some(line(&format!("{server} stopped although a hook failed: {reason}")))
        }
        Event::ServerLost { server, silent_ms, .. } => {
            Some(format!("{server} lost: unreachable for {} s", silent_ms / 1000))
        }
        Event::AppRemoved { app } => Some(format!("{app} is gone")),
        Event::ServerLeftOut { server, .. } => Some(format!("continues without {server}")),
        Event::ServerDone { server, .. } => steps.then(|| format!("{server} is done")),
        Event::Steered { command, by, .. } => steps.then(|| line(&format!("{command} by {by}"))),
        Event::ServerJoined { server } => steps.then(|| format!("{server} joined the group")),
        Event::ServerMoved { server } => steps.then(|| format!("{server} started, or moved")),
        Event::ServerRemoved { server } => steps.then(|| format!("{server} was removed")),
        Event::ReportIgnored { .. } | Event::RequestRepeated { .. } => None,
    }
}
