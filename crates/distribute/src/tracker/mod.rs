//! The leader as tracker: from what servers report to who fetches and who sends.
//!
//! All of it is soft state, in memory of the leader's agent only: the next leader has it again when
//! every server has reported once. Nothing here is needed for bytes to be right, only for them to be
//! fast and to cross the downlink once.
//!
//! Start reading at [`plan`](plan::plan), which is pure; [`Tracker`] feeds it; [`follow`] is the
//! server's side.

mod follow;
mod ledger;
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

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use cohort_core::ids::{Digest, ServerId};

pub use follow::{TrackerCalls, follow};
pub use message::{
    Accusation, HAVE_RUNS_MAX, HOLDERS_MAX, OFFENCES_MAX, REPORTS_MAX, TRANSFER, Told,
    TransferAnswer, TransferReport, TransferRequest,
};
pub use plan::{FAN_OUT_MAX, HEADS_MAX, Layout, Member, Situation, lease_runs, plan};
use transfer::Transfer;
pub use view::{ServerView, TransferView};

/// Transfers that are tracked at once: one per app and platform, and those that ended lately.
const TRANSFERS_MAX: usize = 64;

/// Servers in one transfer: as many as a group may have, and some that just left it.
const MEMBERS_MAX: usize = 2_048;

/// A server that reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Participant {
    /// Which, by its certificate.
    pub server: ServerId,
    /// Its peer port, `host:port`.
    pub address: String,
    /// Its failure domain, if known.
    pub rack: Option<String>,
    /// Whether it is the leader's own server.
    pub leads: bool,
}

/// Why a report is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum TrackerError {
    /// Too much at once.
    #[error("{count} {what} in one report are more than {max}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// How many there may be.
        max: usize,
    },
    /// Longer than any artifact.
    #[error("artifact {artifact} cannot have {length} bytes")]
    TooLong {
        /// Root of the artifact.
        artifact: Digest,
        /// The length that was reported.
        length: u64,
    },
    /// Runs of units that overlap, are out of order, or beyond the end.
    #[error("runs of units of artifact {artifact} overlap or go beyond its end")]
    Runs {
        /// Root of the artifact.
        artifact: Digest,
    },
    /// Not the length that others report.
    #[error("artifact {artifact} has {expected} bytes, not {found}")]
    Length {
        /// Root of the artifact.
        artifact: Digest,
        /// The length that is known.
        expected: u64,
        /// The one that was reported.
        found: u64,
    },
}

/// All transfers of a group, as its leader knows them.
#[derive(Debug, Default)]
pub struct Tracker {
    transfers: Mutex<BTreeMap<Digest, Transfer>>,
    /// What all may take from mirrors together, in bytes per second; 0: no limit.
    zone_limit: AtomicU64,
}

impl Tracker {
    /// Sets what the whole group may take from mirrors together, in bytes per second; `None`: no
    /// limit. Heads hear of it with their next report, at most a fifth of a second later.
    pub fn set_zone_limit(&self, limit: Option<u64>) {
        self.zone_limit.store(limit.unwrap_or(0), Ordering::Relaxed);
    }

    /// Takes a server's report, and says what it is to do.
    ///
    /// # Errors
    /// When the report is larger than it may be, or contradicts what others say.
    pub fn report(
        &self,
        from: &Participant,
        request: &TransferRequest,
        now: Instant,
    ) -> Result<TransferAnswer, TrackerError> {
        let count = request.transfers.len();
        if count > REPORTS_MAX {
            return Err(TrackerError::TooMany { what: "transfers", count, max: REPORTS_MAX });
        }
        let mut transfers = self.transfers.lock().unwrap_or_else(PoisonError::into_inner);
        let mut answer = TransferAnswer {
            again_ms: transfer::AGAIN_MS_MAX,
            guidance: Vec::new(),
            downlink_rate: None,
        };
        for report in &request.transfers {
            report.check()?;
            if !transfers.contains_key(&report.artifact) {
                make_room(&mut transfers);
                let transfer = Transfer::new(report, now);
                transfers.insert(report.artifact.clone(), transfer);
            }
            let Some(transfer) = transfers.get_mut(&report.artifact) else { continue };
            if transfer.length() != report.length && from.leads {
                // The leader's own server follows the log.
                *transfer = Transfer::new(report, now);
            }
            if transfer.length() != report.length {
                let (expected, found) = (transfer.length(), report.length);
                let artifact = report.artifact.clone();
                return Err(TrackerError::Length { artifact, expected, found });
            }
            transfer.take(from, report, now);
            answer.downlink_rate = answer.downlink_rate.max(transfer.ledger.downlink_rate());
            let (again_ms, mut guidance) = transfer.answer(&from.server, now);
            answer.again_ms = answer.again_ms.min(again_ms);
            let limit = self.zone_limit.load(Ordering::Relaxed);
            if let Some(guidance) = guidance.as_mut().filter(|_| limit > 0) {
                let own = transfers.keys().position(|known| *known == report.artifact);
                let takers: Vec<_> = transfers.values().map(|known| known.takers(now)).collect();
                guidance.mirror_rate_max =
                    own.map(|own| zone_limit::part_of(limit, &takers, own, &from.server));
            }
            answer.guidance.extend(guidance.map(|guidance| (report.artifact.clone(), guidance)));
        }
        Ok(answer)
    }

    /// Forgets everything: this server does not lead any more.
    pub fn clear(&self) {
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// All transfers, for people.
    #[must_use]
    pub fn view(&self, now: Instant) -> Vec<TransferView> {
        let transfers = self.transfers.lock().unwrap_or_else(PoisonError::into_inner);
        transfers.iter().map(|(artifact, transfer)| transfer.view(artifact, now)).collect()
    }
}

/// One with the fewest servers goes, and of those the one that was heard of least lately: what one
/// server makes up never pushes out what many fetch.
fn make_room(transfers: &mut BTreeMap<Digest, Transfer>) {
    if transfers.len() < TRANSFERS_MAX {
        return;
    }
    let oldest =
        transfers.iter().min_by_key(|(_, transfer)| (transfer.seen.len(), transfer.heard()));
    if let Some(oldest) = oldest.map(|(artifact, _)| artifact.clone()) {
        transfers.remove(&oldest);
    }
}
