//! What a member answers servers, people and other members.

use cohort_core::command::{Body, COMMAND_VERSION, Command, Rejection};
use cohort_core::ids::{Incarnation, MemberId, ServerId};
use cohort_core::orders::Orders;
use cohort_core::report::Report;

use crate::member::{Proposed, View};

/// Reports in one request. 64: what a server does between two answers, with room for a crash.
pub const REPORTS_MAX: usize = 64;
/// How long a command may take until its outcome is called unknown, in milliseconds: several
/// elections.
pub const COMMAND_MS_MAX: u64 = 5_000;
/// Pause before a command is proposed again, in milliseconds.
const AGAIN_AFTER_MS: u64 = 50;

/// A server's orders, and a hash by which it recognises them. Never 0: that means *none known*.
#[must_use]
pub fn orders(view: &View, server: &ServerId) -> (Option<Orders>, u64) {
    let orders = view.state.orders(server, view.killed.is_some());
    let bytes = serde_json::to_vec(&orders).expect("orders have text keys only");
    let hash = blake3::hash(&bytes);
    let (first, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
    (orders, u64::from_be_bytes(*first).max(1))
}

/// Whether a held question is answered now: the orders differ from those that the server has, or
/// this member lost the leader and the server had better ask another one.
#[must_use]
pub fn answers_now(has_leader: bool, hash: u64, known: u64) -> bool {
    hash != known || !has_leader
}

/// Whether a person may say this.
#[must_use]
pub fn for_people(body: &Body) -> bool {
    matches!(
        body,
        Body::Pause { .. }
            | Body::Resume { .. }
            | Body::Approve { .. }
            | Body::Abort { .. }
            | Body::Retry { .. }
            | Body::Undo { .. }
            | Body::RemoveServer { .. }
            | Body::PlaceMember { .. }
    )
}

/// Whether a member may pass this on to the leader: what servers and people say, never what only
/// a leader decides.
#[must_use]
pub fn for_members(body: &Body) -> bool {
    matches!(body, Body::Report { .. } | Body::AddServer { .. }) || for_people(body)
}

/// Why a command is not forwarded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ForwardRefused {
    /// Only the leader itself issues it.
    LeadersOnly,
    /// An entry of this version would stop every member that does not know it.
    Version,
    TooLong,
}

/// Whether a member may forward this command to the leader.
///
/// # Errors
/// Why it may not.
pub fn check_forward(command: &Command) -> Result<(), ForwardRefused> {
    let too_long = matches!(&command.body, Body::Report { report } if report.outcome.is_too_long());
    if !for_members(&command.body) {
        Err(ForwardRefused::LeadersOnly)
    } else if command.version != COMMAND_VERSION {
        Err(ForwardRefused::Version)
    } else if too_long {
        Err(ForwardRefused::TooLong)
    } else {
        Ok(())
    }
}

/// Why reports are not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportsRefused {
    /// More than [`REPORTS_MAX`].
    TooMany,
    /// A server only reports for itself.
    Foreign,
    /// They are about another incarnation of the group.
    OtherIncarnation,
    /// The texts of one are too long for the log.
    TooLong,
}

/// Whether a server's reports are taken.
///
/// # Errors
/// Why they are not.
pub fn check_reports(
    server: &ServerId,
    reports: &[Report],
    about: Incarnation,
    incarnation: Incarnation,
) -> Result<(), ReportsRefused> {
    if reports.len() > REPORTS_MAX {
        Err(ReportsRefused::TooMany)
    } else if reports.iter().any(|report| report.server != *server) {
        Err(ReportsRefused::Foreign)
    } else if about != incarnation {
        Err(ReportsRefused::OtherIncarnation)
    } else if reports.iter().any(|report| report.outcome.is_too_long()) {
        Err(ReportsRefused::TooLong)
    } else {
        Ok(())
    }
}

/// What joining the group takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joining {
    /// The server is in it, with this address.
    Done,
    /// It is in it, and has moved.
    Moved,
    /// It is new. Only the hub decides which group a server belongs to: ask the registry first.
    New,
}

/// What it takes to have `server` in the group with this address. Its rack is the one that it came
/// with: voters are spread over racks, so a server that may change its own could get itself a vote.
#[must_use]
pub fn joining(view: &View, server: &ServerId, address: &str) -> Joining {
    match view.state.servers.get(server) {
        None => Joining::New,
        Some(known) if known.address == address => Joining::Done,
        Some(_) => Joining::Moved,
    }
}

/// What to do next to get a command into the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// It is in the log; with the reason if it was refused.
    Done { index: u64, rejection: Option<Rejection> },
    /// Pass it on to the leader, within what is left of [`COMMAND_MS_MAX`].
    Forward { to: MemberId, within_ms: u64 },
    /// Propose it again after so many milliseconds. The command carries what makes that safe.
    Again { after_ms: u64 },
    /// Its outcome is unknown.
    GiveUp,
}

/// Getting one command into the log: here if this member leads, else through the leader; tried
/// again until [`COMMAND_MS_MAX`] are over.
#[derive(Debug, Clone, Copy)]
pub struct Committing {
    own: MemberId,
    until_ms: u64,
}

impl Committing {
    /// Begins; `own` is this server's member.
    #[must_use]
    pub fn begin(now_ms: u64, own: MemberId) -> Committing {
        Committing { own, until_ms: now_ms + COMMAND_MS_MAX }
    }

    /// The own member's answer to a proposal.
    #[must_use]
    pub fn proposed(&self, now_ms: u64, outcome: Proposed) -> Next {
        match outcome {
            Proposed::Done { index, rejection } => Next::Done { index, rejection },
            Proposed::NotLeader { leader: Some(leader) } if leader.0 != self.own.0 => {
                match self.until_ms.saturating_sub(now_ms) {
                    0 => Next::GiveUp,
                    within_ms => Next::Forward { to: MemberId(leader.0), within_ms },
                }
            }
            Proposed::NotLeader { .. } | Proposed::Busy | Proposed::Unknown => self.failed(now_ms),
        }
    }

    /// The leader did not answer, or did not take it.
    #[must_use]
    pub fn failed(&self, now_ms: u64) -> Next {
        if now_ms + AGAIN_AFTER_MS < self.until_ms {
            Next::Again { after_ms: AGAIN_AFTER_MS }
        } else {
            Next::GiveUp
        }
    }
}

/// Names the leader in a command that needs it: an undo begins with the leader's own server.
pub fn name_leader(command: &mut Command, view: &View) {
    if let Body::Undo { lead, .. } = &mut command.body
        && let Some(leader) = view.leader()
    {
        lead.clone_from(leader);
    }
}
