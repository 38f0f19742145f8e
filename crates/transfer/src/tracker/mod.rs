//! The leader as tracker: turns servers' reports into who fetches what and who feeds whom.
//!
//! All of it is soft state in the memory of the leader's agent. The next leader has it again once
//! every server has reported. None of it is needed for correctness; it makes transfers fast, and
//! limits them to one copy through the downlink.
//!
//! Start at [`plan`](plan::plan), a pure function; [`Tracker`] feeds it.

mod event;
mod judge;
mod message;
mod plan;
#[cfg(test)]
mod plan_test;
#[cfg(test)]
mod reports_test;
mod seen;
mod transfer;
mod tree;
mod trust;
#[cfg(test)]
mod trust_test;
mod view;
#[cfg(test)]
mod view_test;
mod zone_limit;
#[cfg(test)]
mod zone_limit_test;

use std::collections::BTreeMap;

use cohort_core::ids::{Digest, ServerId};

use crate::Moment;
pub use event::Event;
pub use message::{
    Accusation, HAVE_RUNS_MAX, HOLDERS_MAX, OFFENCES_MAX, REPORTS_MAX, TRANSFER, Told,
    TransferAnswer, TransferReport, TransferRequest,
};
pub use plan::{Layout, Member, Situation, plan};
use transfer::Transfer;
pub use view::{ServerView, TransferView};

/// Most transfers tracked at a time: one per app and platform, and those that ended recently.
const TRANSFERS_MAX: usize = 64;

/// Most servers in one transfer: as many as a group may have, plus some that left recently.
const MEMBERS_MAX: usize = 2_048;

/// A server that reports its transfers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Participant {
    /// Its name, from its certificate.
    pub server: ServerId,
    /// Its peer port, `host:port`.
    pub address: String,
    /// Its failure domain, if known.
    pub rack: Option<String>,
    /// Whether the leader's agent runs on it.
    pub leads: bool,
}

/// Why a report is rejected.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TrackerError {
    #[error("{count} {what} in one report exceed the limit of {max}")]
    TooMany { what: &'static str, count: u64, max: u64 },
    #[error("artifact {artifact} cannot have {length} bytes")]
    TooLong { artifact: Digest, length: u64 },
    /// Runs of units that overlap, are out of order, or beyond the end.
    #[error("runs of units of artifact {artifact} overlap or go beyond its end")]
    Runs { artifact: Digest },
    #[error("artifact {artifact} has {expected} bytes, not {found}")]
    Length { artifact: Digest, expected: u64, found: u64 },
}

/// All transfers of a group, as its leader knows them.
#[derive(Debug, Default)]
pub struct Tracker {
    transfers: BTreeMap<Digest, Transfer>,
    /// Limit for all servers together, in bytes per second from mirrors.
    zone_limit: Option<u64>,
}

impl Tracker {
    /// Sets the limit for the whole group, in bytes per second from mirrors. Heads learn of it with
    /// their next report, at most a fifth of a second later.
    pub fn set_zone_limit(&mut self, limit: Option<u64>) {
        self.zone_limit = limit.filter(|limit| *limit > 0);
    }

    /// Processes a server's report, and returns what the server should do.
    ///
    /// # Errors
    /// If the report exceeds a limit, or contradicts what others say.
    pub fn report(
        &mut self,
        from: &Participant,
        request: &TransferRequest,
        now: Moment,
    ) -> Result<TransferAnswer, TrackerError> {
        request.check()?;
        let mut answer = TransferAnswer {
            again_ms: transfer::AGAIN_MS_MAX,
            guidance: Vec::new(),
            downlink_rate: None,
        };
        for report in &request.transfers {
            let artifact = &report.artifact;
            let transfer = self.transfer(from, report, now)?;
            transfer.take(from, report, now);
            answer.downlink_rate = answer.downlink_rate.max(transfer.downlink_rate());
            let (again_ms, guidance) = transfer.answer(&from.server, now);
            answer.again_ms = answer.again_ms.min(again_ms);
            if let Some(mut guidance) = guidance {
                guidance.mirror_rate_max = self.part_of_limit(artifact, &from.server, now);
                answer.guidance.push((artifact.clone(), guidance));
            }
        }
        Ok(answer)
    }

    /// The transfer that a report belongs to.
    fn transfer(
        &mut self,
        from: &Participant,
        report: &TransferReport,
        now: Moment,
    ) -> Result<&mut Transfer, TrackerError> {
        let artifact = &report.artifact;
        if !self.transfers.contains_key(artifact) {
            make_room(&mut self.transfers);
        }
        let transfer = self.transfers.entry(artifact.clone());
        let transfer = transfer.or_insert_with(|| Transfer::new(report, now));
        if transfer.length != report.length {
            // The leader's own server follows the log.
            if !from.leads {
                return Err(TrackerError::Length {
                    artifact: artifact.clone(),
                    expected: transfer.length,
                    found: report.length,
                });
            }
            *transfer = Transfer::new(report, now);
        }
        Ok(transfer)
    }

    fn part_of_limit(&self, artifact: &Digest, server: &ServerId, now: Moment) -> Option<u64> {
        let limit = self.zone_limit?;
        let own = self.transfers.keys().position(|known| known == artifact)?;
        let takers: Vec<_> = self.transfers.values().map(|known| known.takers(now)).collect();
        Some(zone_limit::part_of(limit, &takers, own, server))
    }

    /// Events since the last call that are worth a log line.
    pub fn take_events(&mut self) -> Vec<(Digest, Event)> {
        let transfers = self.transfers.iter_mut();
        let events = transfers.flat_map(|(artifact, transfer)| {
            std::mem::take(&mut transfer.events).into_iter().map(|event| (artifact.clone(), event))
        });
        events.collect()
    }

    /// Drops all transfers: this server is no longer the leader.
    pub fn clear(&mut self) {
        self.transfers.clear();
    }

    /// All transfers, for people.
    #[must_use]
    pub fn view(&self, now: Moment) -> Vec<TransferView> {
        self.transfers.iter().map(|(artifact, transfer)| transfer.view(artifact, now)).collect()
    }
}

/// Drops the transfer with the fewest servers, and of those the one idle for longest: one server's
/// inventions never displace what many fetch.
fn make_room(transfers: &mut BTreeMap<Digest, Transfer>) {
    if transfers.len() < TRANSFERS_MAX {
        return;
    }
    let oldest = transfers.iter().min_by_key(|(_, transfer)| (transfer.seen.len(), transfer.heard));
    if let Some(oldest) = oldest.map(|(artifact, _)| artifact.clone()) {
        transfers.remove(&oldest);
    }
}
