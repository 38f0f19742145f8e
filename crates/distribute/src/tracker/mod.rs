//! The leader as tracker: from what servers report to who fetches and who sends.
//!
//! All of it is soft state, in memory of the leader's agent only: the next leader has it again when
//! every server has reported once. Nothing here is needed for bytes to be right, only for them to be
//! fast and to cross the downlink once.
//!
//! Start reading at [`plan`](plan::plan), which is pure; [`Tracker`] feeds it; [`follow`] is the
//! server's side.

mod follow;
mod message;
mod plan;
#[cfg(test)]
mod plan_test;
mod transfer;
mod view;

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use cohort_core::ids::{Digest, ServerId};

pub use follow::{TrackerCalls, follow};
pub use message::{
    HAVE_RUNS_MAX, HOLDERS_MAX, REPORTS_MAX, TRANSFER, Told, TransferAnswer, TransferReport,
    TransferRequest,
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
}

impl Tracker {
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
        let mut answer = TransferAnswer { again_ms: transfer::AGAIN_MS_MAX, guidance: Vec::new() };
        for report in &request.transfers {
            let lists = [report.silent.len(), report.wrong.len(), report.have.len()];
            let count = lists.into_iter().max().unwrap_or(0);
            if count > HAVE_RUNS_MAX {
                return Err(TrackerError::TooMany { what: "entries", count, max: HAVE_RUNS_MAX });
            }
            let count = report.holders.len();
            if count > HOLDERS_MAX {
                return Err(TrackerError::TooMany { what: "holders", count, max: HOLDERS_MAX });
            }
            if !transfers.contains_key(&report.artifact) {
                make_room(&mut transfers);
                let transfer = Transfer::new(report, now);
                transfers.insert(report.artifact.clone(), transfer);
            }
            let Some(transfer) = transfers.get_mut(&report.artifact) else { continue };
            if transfer.length() != report.length {
                let (expected, found) = (transfer.length(), report.length);
                let artifact = report.artifact.clone();
                return Err(TrackerError::Length { artifact, expected, found });
            }
            transfer.take(from, report, now);
            let (again_ms, guidance) = transfer.answer(&from.server, now);
            answer.again_ms = answer.again_ms.min(again_ms);
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

/// The one that was heard of least lately goes.
fn make_room(transfers: &mut BTreeMap<Digest, Transfer>) {
    if transfers.len() < TRANSFERS_MAX {
        return;
    }
    let oldest = transfers.iter().min_by_key(|(_, transfer)| transfer.heard());
    if let Some(oldest) = oldest.map(|(artifact, _)| artifact.clone()) {
        transfers.remove(&oldest);
    }
}
