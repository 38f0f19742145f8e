//! A member's responses to servers, people and other members.

use cohort_core::State;
use cohort_core::command::{Body, Command, Rejection};
use cohort_core::ids::{Incarnation, MemberId, ServerId};
use cohort_core::orders::Orders;
use cohort_core::state::Process;

use crate::member::{Proposed, View};
use crate::outbox::ANSWER_MS_MAX;

/// Reports in one request. 64: those of a server between two responses, with room for a crash.
pub const REPORTS_MAX: usize = 64;
/// How long a command may take until its outcome is unknown, in milliseconds: several elections.
pub const COMMAND_MS_MAX: u64 = 5_000;
/// How long a member waits for a command that it forwarded, and the leader for one that was
/// forwarded to it, in milliseconds. 2 s: an election; less than half of [`COMMAND_MS_MAX`], so the
/// caller has time for another try, and a leader does not work for a caller that has given up.
pub const FORWARD_MS_MAX: u64 = 2_000;
const _: () = assert!(FORWARD_MS_MAX * 2 < COMMAND_MS_MAX);
/// How long after its arrival a request's reports are still taken up, in milliseconds; what is left
/// by then is acknowledged by a later request. The server waits [`ANSWER_MS_MAX`] for the answer: a
/// slow disk must not make it repeat what is done.
const REPORTS_BEGIN_MS_MAX: u64 = 900;
const _: () = assert!(REPORTS_BEGIN_MS_MAX + COMMAND_MS_MAX < ANSWER_MS_MAX);
/// Pause before a command is proposed again, in milliseconds.
const AGAIN_AFTER_MS: u64 = 50;

/// Whether the agent with this life is the one that speaks for the server.
#[must_use]
pub fn speaks_for(state: &State, server: &ServerId, life: u64) -> bool {
    state.servers.get(server).is_some_and(|known| known.process.life == life)
}

/// The host of the agent that speaks for the server, if it is another one than that with this life.
#[must_use]
pub fn elsewhere(state: &State, server: &ServerId, life: u64) -> Option<String> {
    let known = state.servers.get(server).filter(|known| known.process.life != life);
    known.map(|known| known.process.host.clone())
}

/// The orders of a server for its agent with this life.
#[must_use]
pub fn orders(view: &View, server: &ServerId, life: u64) -> Option<Orders> {
    speaks_for(&view.state, server, life).then(|| view.orders(server)).flatten()
}

/// A hash that identifies orders. Never 0: that means *none known*.
///
/// # Panics
/// Never: orders have text keys only.
#[must_use]
pub fn hash_of(orders: Option<&Orders>) -> u64 {
    let bytes = serde_json::to_vec(&orders).expect("orders have text keys only");
    let hash = blake3::hash(&bytes);
    let (first, _) = hash.as_bytes().split_first_chunk().expect("a hash has 32 bytes");
    u64::from_be_bytes(*first).max(1)
}

/// Whether to answer a held request now: the orders differ from those that the server has, or this
/// member lost the leader and the server should ask another one.
#[must_use]
pub fn answers_now(has_leader: bool, hash: u64, known: u64) -> bool {
    hash != known || !has_leader
}

/// Whether operators may send this command.
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
            | Body::Restart { .. }
            | Body::RemoveServer { .. }
            | Body::PlaceMember { .. }
    )
}

/// Why a server's report is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ReportRefused {
    /// The server is not in the group, as far as this member knows.
    Stranger,
    /// It belongs to another incarnation of the group.
    OtherIncarnation,
    /// Another agent speaks for the server.
    OtherAgent,
}

/// Whether the agent with this life may report `about` this incarnation of the group.
///
/// # Errors
/// The reason why not.
pub fn check_report(
    state: &State,
    (server, life): (&ServerId, u64),
    about: Incarnation,
) -> Result<(), ReportRefused> {
    if !state.servers.contains_key(server) {
        Err(ReportRefused::Stranger)
    } else if about != state.incarnation {
        Err(ReportRefused::OtherIncarnation)
    } else if !speaks_for(state, server, life) {
        Err(ReportRefused::OtherAgent)
    } else {
        Ok(())
    }
}

/// Whether a member takes up the next report of a request that arrived at `arrived_ms`; `done`
/// reports of it are in the log.
#[must_use]
pub fn takes_next_report(done: usize, arrived_ms: u64, now_ms: u64) -> bool {
    done == 0 || now_ms.saturating_sub(arrived_ms) < REPORTS_BEGIN_MS_MAX
}

/// What a server needs to join the group.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joining {
    /// Nothing: it is in the group, with this address and this agent.
    Done,
    /// It is in the group, with another address or another agent.
    Moved,
    /// It is new. Only the hub decides which group a server belongs to: ask the registry first.
    New,
}

/// What is needed to have `server` in the group with this address and this agent.
#[must_use]
pub fn joining(view: &View, server: &ServerId, address: &str, process: &Process) -> Joining {
    match view.state.servers.get(server) {
        None => Joining::New,
        Some(known) if known.address == address && known.process == *process => Joining::Done,
        Some(_) => Joining::Moved,
    }
}

/// The next step to get a command into the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// It is in the log; with the reason if it was refused.
    Done { index: u64, rejection: Option<Rejection> },
    /// Forward it to the leader, which may take this long: at most [`FORWARD_MS_MAX`].
    Forward { to: MemberId, within_ms: u64 },
    /// Propose it again after this time. The command's request id makes that safe.
    Again { after_ms: u64 },
    /// Its outcome is unknown.
    GiveUp,
}

/// Getting one command into the log: here if this member is the leader, else through the leader;
/// retried until [`COMMAND_MS_MAX`] has passed.
#[derive(Debug, Clone, Copy)]
pub struct Committing {
    own: MemberId,
    until_ms: u64,
}

impl Committing {
    /// Starts; `own` is this server's member.
    #[must_use]
    pub fn begin(now_ms: u64, own: MemberId) -> Committing {
        Committing { own, until_ms: now_ms + COMMAND_MS_MAX }
    }

    /// How long its outcome may still be awaited, in milliseconds.
    #[must_use]
    pub fn left_ms(&self, now_ms: u64) -> u64 {
        self.until_ms.saturating_sub(now_ms)
    }

    /// Processes this member's response to a proposal.
    #[must_use]
    pub fn proposed(&self, now_ms: u64, outcome: Proposed) -> Next {
        match outcome {
            Proposed::Done { index, rejection } => Next::Done { index, rejection },
            Proposed::NotLeader { leader: Some(leader) } if leader.0 != self.own.0 => {
                match self.left_ms(now_ms).min(FORWARD_MS_MAX) {
                    0 => Next::GiveUp,
                    within_ms => Next::Forward { to: MemberId(leader.0), within_ms },
                }
            }
            Proposed::NotLeader { .. } | Proposed::Busy | Proposed::NoSpace | Proposed::Unknown => {
                self.failed(now_ms)
            }
        }
    }

    /// Processes a failed forward: the leader did not respond, or did not accept it.
    #[must_use]
    pub fn failed(&self, now_ms: u64) -> Next {
        if now_ms + AGAIN_AFTER_MS < self.until_ms {
            Next::Again { after_ms: AGAIN_AFTER_MS }
        } else {
            Next::GiveUp
        }
    }
}

/// Adds the leader to a command that needs it: an undo starts with the leader's own server.
pub fn name_leader(command: &mut Command, view: &View) {
    if let Body::Undo { lead, .. } = &mut command.body
        && let Some(leader) = view.leader()
    {
        lead.clone_from(leader);
    }
}
