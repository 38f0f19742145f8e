//! What the member's log lines and metrics say.

use std::sync::Arc;

use cohort_base::{chain, events};
use cohort_core::Event;
use cohort_core::state::{Ending, HistoryEntry};
use cohort_server::member::Note;

use crate::events::EventLog;
use crate::metrics::{Ended, Metrics};

/// Writes log lines and counts rollouts.
pub(crate) struct Notes {
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) events: Arc<EventLog>,
}

impl Notes {
    /// An entry was applied; `ended` is the rollout that ended with it.
    pub(crate) fn happened(&self, index: u64, event: &Event, ended: Option<&HistoryEntry>) {
        self.events.happened(index, event);
        match event {
            Event::PhaseChanged { app, from, to, by } => {
                tracing::info!(event = events::PHASE, %app, %from, %to, by, "phase changed");
                if let Some(entry) = ended {
                    let labels = Ended { app: app.to_string(), outcome: outcome(entry.ending) };
                    self.metrics.rollouts.get_or_create(&labels).inc();
                    let seconds = entry.ended.since(entry.started) as f64 / 1000.0;
                    self.metrics.rollout_seconds.get_or_create(&labels).observe(seconds);
                }
            }
            Event::Granted { app, server, generation, purpose } => {
                let event = events::GRANTED;
                tracing::info!(event, %app, %server, %generation, ?purpose, "change granted");
            }
            Event::Withdrawn { app, server } => {
                tracing::info!(%app, %server, "change withdrawn: there is no room for it");
            }
            Event::ServerFailed { app, server, reason } => {
                tracing::warn!(%app, %server, reason, "server failed");
            }
            Event::HookIgnored { app, server, reason } => {
                tracing::warn!(%app, %server, reason, "stopped although a hook failed");
            }
            Event::ServerLost { app, server, silent_ms } => {
                tracing::warn!(%app, %server, silent_ms, "server lost");
            }
            Event::ServerLeftOut { app, server } => {
                tracing::warn!(%app, %server, "continuing without a server that cannot download");
            }
            Event::AppRemoved { app } => tracing::info!(%app, "app removed from the group"),
            Event::ServerDone { app, server } => tracing::info!(%app, %server, "server done"),
            Event::ReportIgnored { server, sequence } => {
                tracing::debug!(%server, sequence, "report ignored");
            }
            Event::RequestRepeated { .. } => {}
            Event::ServerJoined { server } => tracing::info!(%server, "server joined the group"),
            Event::ServerMoved { server } => tracing::info!(%server, "server started, or moved"),
            Event::ServerRemoved { server } => tracing::info!(%server, "server removed"),
            Event::Steered { app, command, by } => tracing::info!(%app, command, by, "steered"),
        }
    }

    /// The member itself has something to say.
    pub(crate) fn noted(&self, note: &Note) {
        match note {
            Note::Role { role, term, leader } => {
                let (event, leader) = (events::RAFT_ROLE, leader.map(|id| id.0));
                tracing::info!(event, ?role, term = term.0, leader, "raft role changed");
            }
            Note::Leads { term } => {
                let event = events::LEADER_READY;
                tracing::info!(event, term = term.0, "leading the group");
            }
            Note::GivesAway => {
                tracing::info!(event = events::LEADERSHIP_TRANSFER, "transferring leadership");
            }
            Note::HandsOver { to, reaches } => {
                let (event, registry) = (events::LEADERSHIP_TRANSFER, reaches.registry);
                let repository = reaches.repository;
                tracing::warn!(event, %to, registry, repository,
                    "transferring leadership to a server that reaches hub and mirrors");
            }
            Note::Rejected { index, command, rejection } => {
                tracing::debug!(index, command, ?rejection, "command rejected");
            }
            Note::Membership { voters, standbys, begun: Ok(()) } => {
                tracing::info!(?voters, ?standbys, "membership change begun");
            }
            Note::Membership { voters, standbys, begun: Err(error) } => {
                let error = chain(error);
                tracing::debug!(?voters, ?standbys, error, "membership change not started");
            }
            Note::NotCompacted(error) => tracing::warn!(error = chain(error), "no snapshot taken"),
        }
    }
}

fn outcome(ending: Ending) -> &'static str {
    match ending {
        Ending::Completed => "completed",
        Ending::RolledBack => "rolled-back",
        Ending::HeldInPlace => "held-in-place",
        Ending::Superseded => "superseded",
        Ending::Adopted => "adopted",
    }
}
