//! The boundary to the library: converts its messages, entries and configurations to ours and back.
//!
//! Bytes in the library's own encoding never cross it. In the library, a membership entry carries a
//! protobuf message; on disk and on the network it carries [`Change`] instead. The library only
//! ever decodes protobuf bytes that this file has just encoded.

// Fill the library's types field by field: they have private runtime fields, and naming a default
// for the rest would add nothing.
#![allow(clippy::field_reassign_with_default)]

use borsh::{BorshDeserialize, BorshSerialize};
use cohort_base::Cause;
use cohort_store::encoding::{self, DecodeError};
use cohort_store::{Configuration, Entry, EntryKind, HardState, Index, RaftId, Snapshot, Term};
use protobuf::Message as _;
use raft::eraftpb;

use crate::{AppendReply, Message, ReadContext, VoteReply, VoteRequest};

/// The library's mark on an election that the leader requested.
const HANDED_OVER: &[u8] = b"CampaignTransfer";

/// The version of a membership entry.
const CHANGE_VERSION: u8 = 1;

/// A membership change, as stored in the log.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) enum Change {
    /// From here on, the new half decides alone.
    Leave,
    /// From here on, both halves decide; these are the steps from the old one to the new one.
    Enter(Vec<(Part, RaftId)>),
}

/// What a member becomes in a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub(crate) enum Part {
    Voter,
    Standby,
    Removed,
}

impl Change {
    pub(crate) fn encode(&self) -> Vec<u8> {
        encoding::encode(CHANGE_VERSION, self)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Change, DecodeError> {
        encoding::decode(CHANGE_VERSION, bytes)
    }

    pub(crate) fn to_library(&self) -> eraftpb::ConfChangeV2 {
        let mut library = eraftpb::ConfChangeV2::default();
        if let Change::Enter(steps) = self {
            // Explicit: this crate decides when to leave, so that it can transfer leadership first.
            library.set_transition(eraftpb::ConfChangeTransition::Explicit);
            for (part, id) in steps {
                let mut step = eraftpb::ConfChangeSingle::default();
                step.node_id = id.0;
                step.set_change_type(match part {
                    Part::Voter => eraftpb::ConfChangeType::AddNode,
                    Part::Standby => eraftpb::ConfChangeType::AddLearnerNode,
                    Part::Removed => eraftpb::ConfChangeType::RemoveNode,
                });
                library.mut_changes().push(step);
            }
        }
        library
    }

    fn from_library(library: &eraftpb::ConfChangeV2) -> Change {
        if library.get_changes().is_empty() {
            return Change::Leave;
        }
        let step = |step: &eraftpb::ConfChangeSingle| {
            let part = match step.get_change_type() {
                eraftpb::ConfChangeType::AddNode => Part::Voter,
                eraftpb::ConfChangeType::AddLearnerNode => Part::Standby,
                eraftpb::ConfChangeType::RemoveNode => Part::Removed,
            };
            (part, RaftId(step.node_id))
        };
        Change::Enter(library.get_changes().iter().map(step).collect())
    }
}

/// The change in a membership entry of the library.
pub(crate) fn change_in(entry: &eraftpb::Entry) -> Result<Change, Cause> {
    let mut library = eraftpb::ConfChangeV2::default();
    library.merge_from_bytes(entry.get_data())?;
    Ok(Change::from_library(&library))
}

/// Our entry from the library's.
pub(crate) fn entry_out(entry: &eraftpb::Entry) -> Result<Entry, Cause> {
    let (kind, data) = match entry.get_entry_type() {
        eraftpb::EntryType::EntryNormal => (EntryKind::Data, entry.get_data().to_vec()),
        eraftpb::EntryType::EntryConfChangeV2 => {
            (EntryKind::Membership, change_in(entry)?.encode())
        }
        eraftpb::EntryType::EntryConfChange => {
            return Err("membership change in the library's old format".into());
        }
    };
    Ok(Entry { index: Index(entry.index), term: Term(entry.term), kind, data })
}

/// The library's entry from ours.
pub(crate) fn entry_in(entry: &Entry) -> Result<eraftpb::Entry, Cause> {
    let mut library = eraftpb::Entry::default();
    library.index = entry.index.0;
    library.term = entry.term.0;
    match entry.kind {
        EntryKind::Data => library.data = entry.data.clone().into(),
        EntryKind::Membership => {
            let change = Change::decode(&entry.data)?;
            let bytes = change.to_library().write_to_bytes()?;
            library.set_entry_type(eraftpb::EntryType::EntryConfChangeV2);
            library.data = bytes.into();
        }
    }
    Ok(library)
}

/// Our configuration from the library's.
pub(crate) fn configuration_out(state: &eraftpb::ConfState) -> Configuration {
    let ids = |ids: &[u64]| ids.iter().copied().map(RaftId).collect();
    Configuration {
        voters: ids(state.get_voters()),
        outgoing: ids(state.get_voters_outgoing()),
        standbys: ids(state.get_learners()),
        standbys_next: ids(state.get_learners_next()),
    }
}

/// The library's configuration from ours.
pub(crate) fn configuration_in(configuration: &Configuration) -> eraftpb::ConfState {
    let ids = |ids: &std::collections::BTreeSet<RaftId>| ids.iter().map(|id| id.0).collect();
    let mut state = eraftpb::ConfState::default();
    state.set_voters(ids(&configuration.voters));
    state.set_voters_outgoing(ids(&configuration.outgoing));
    state.set_learners(ids(&configuration.standbys));
    state.set_learners_next(ids(&configuration.standbys_next));
    state
}

/// Our snapshot from the library's.
pub(crate) fn snapshot_out(snapshot: &eraftpb::Snapshot) -> Snapshot {
    let metadata = snapshot.get_metadata();
    Snapshot {
        index: Index(metadata.index),
        term: Term(metadata.term),
        configuration: configuration_out(metadata.get_conf_state()),
        data: snapshot.get_data().to_vec(),
    }
}

/// The library's snapshot from ours.
pub(crate) fn snapshot_in(snapshot: &Snapshot) -> eraftpb::Snapshot {
    let mut library = eraftpb::Snapshot::default();
    let metadata = library.mut_metadata();
    metadata.index = snapshot.index.0;
    metadata.term = snapshot.term.0;
    metadata.set_conf_state(configuration_in(&snapshot.configuration));
    library.data = snapshot.data.clone().into();
    library
}

/// Our hard state from the library's.
pub(crate) fn hard_state_out(state: &eraftpb::HardState) -> HardState {
    HardState {
        term: Term(state.term),
        vote: (state.vote != 0).then_some(RaftId(state.vote)),
        commit: Index(state.commit),
    }
}

/// The library's hard state from ours.
pub(crate) fn hard_state_in(state: HardState) -> eraftpb::HardState {
    let mut library = eraftpb::HardState::default();
    library.term = state.term.0;
    library.vote = state.vote.map_or(0, |id| id.0);
    library.commit = state.commit.0;
    library
}

/// The version of a read in the library's messages; it never leaves this member.
const READ_VERSION: u8 = 1;

/// A read as the library's opaque context.
pub(crate) fn read_in(read: ReadContext) -> Vec<u8> {
    encoding::encode(READ_VERSION, &read)
}

/// The read in an opaque context of the library.
pub(crate) fn read_out(bytes: &[u8]) -> Option<ReadContext> {
    encoding::decode(READ_VERSION, bytes).ok()
}

/// Our message from the library's; an error for kinds that a member never sends.
pub(crate) fn message_out(m: &eraftpb::Message) -> Result<Message, Cause> {
    use eraftpb::MessageType as T;
    let (term, index, commit) = (Term(m.term), Index(m.index), Index(m.commit));
    let vote_request = || VoteRequest {
        term,
        last: index,
        last_term: Term(m.log_term),
        commit,
        commit_term: Term(m.commit_term),
        handed_over: m.get_context() == HANDED_OVER,
    };
    let vote_reply =
        || VoteReply { term, refused: m.reject, commit, commit_term: Term(m.commit_term) };
    let read = || {
        let data = m.get_entries().first().map_or(&[][..], |entry| entry.get_data());
        read_out(data).ok_or("read without a context")
    };
    Ok(match m.get_msg_type() {
        T::MsgAppend => Message::Append {
            term,
            previous: index,
            previous_term: Term(m.log_term),
            commit,
            entries: m.get_entries().iter().map(entry_out).collect::<Result<_, _>>()?,
        },
        T::MsgAppendResponse => Message::AppendReply(AppendReply {
            term,
            index,
            commit,
            rejected: m.reject.then_some((Index(m.reject_hint), Term(m.log_term))),
        }),
        T::MsgRequestPreVote => Message::PreVote(vote_request()),
        T::MsgRequestPreVoteResponse => Message::PreVoteReply(vote_reply()),
        T::MsgRequestVote => Message::Vote(vote_request()),
        T::MsgRequestVoteResponse => Message::VoteReply(vote_reply()),
        T::MsgSnapshot => Message::Snapshot { term, snapshot: snapshot_out(m.get_snapshot()) },
        T::MsgHeartbeat => Message::Heartbeat { term, commit, read: read_out(m.get_context()) },
        T::MsgHeartbeatResponse => {
            Message::HeartbeatReply { term, commit, read: read_out(m.get_context()) }
        }
        T::MsgTimeoutNow => Message::TakeOver { term },
        T::MsgReadIndex => Message::ReadRequest { read: read()? },
        T::MsgReadIndexResp => Message::ReadReply { term, index, read: read()? },
        T::MsgHup
        | T::MsgBeat
        | T::MsgPropose
        | T::MsgUnreachable
        | T::MsgSnapStatus
        | T::MsgCheckQuorum
        | T::MsgTransferLeader => {
            return Err(format!("unexpected message {:?}", m.get_msg_type()).into());
        }
    })
}

/// The library's message for one received from a peer.
///
/// The library trusts its input: this checks what can be checked without a log, and
/// [`plausible`](crate::plausible) what this member's own tells.
pub(crate) fn message_in(
    from: RaftId,
    to: RaftId,
    message: &Message,
) -> Result<eraftpb::Message, Cause> {
    let mut m = eraftpb::Message::default();
    m.set_msg_type(type_of(message).ok_or("not a message of the library")?);
    m.from = from.0;
    m.to = to.0;
    match message {
        Message::Append { term, previous, previous_term, commit, entries } => {
            m.term = term.0;
            m.index = previous.0;
            m.log_term = previous_term.0;
            m.commit = commit.0;
            m.set_entries(entries_in(entries, *previous, *term)?.into());
        }
        Message::AppendReply(reply) => {
            m.term = reply.term.0;
            m.index = reply.index.0;
            m.commit = reply.commit.0;
            if let Some((index, term)) = reply.rejected {
                m.reject = true;
                m.reject_hint = index.0;
                m.log_term = term.0;
            }
        }
        Message::PreVote(request) | Message::Vote(request) => {
            m.term = request.term.0;
            m.index = request.last.0;
            m.log_term = request.last_term.0;
            m.commit = request.commit.0;
            m.commit_term = request.commit_term.0;
            if request.handed_over {
                m.context = HANDED_OVER.to_vec().into();
            }
        }
        Message::PreVoteReply(reply) | Message::VoteReply(reply) => {
            m.term = reply.term.0;
            m.reject = reply.refused;
            m.commit = reply.commit.0;
            m.commit_term = reply.commit_term.0;
        }
        Message::Snapshot { term, snapshot } => {
            m.term = term.0;
            m.set_snapshot(snapshot_in(snapshot));
        }
        Message::Heartbeat { term, commit, read }
        | Message::HeartbeatReply { term, commit, read } => {
            m.term = term.0;
            m.commit = commit.0;
            m.context = read.map(read_in).unwrap_or_default().into();
        }
        Message::TakeOver { term } => m.term = term.0,
        // Refused above: they have no type there.
        Message::Present { .. } | Message::Vouch { .. } | Message::Marks { .. } => {}
        Message::ReadRequest { read } => m.set_entries(vec![read_entry(*read)].into()),
        Message::ReadReply { term, index, read } => {
            m.term = term.0;
            m.index = index.0;
            m.set_entries(vec![read_entry(*read)].into());
        }
    }
    // A position that the log does not have, of no term, would match and stop this member.
    let impossible = |previous: &Index, term: &Term| previous.0 > 0 && term.0 == 0;
    if matches!(message, Message::Append { previous, previous_term, .. }
        if impossible(previous, previous_term))
    {
        return Err("a previous entry of term 0".into());
    }
    // The library treats a message with term 0 as its own; only reads legitimately have none.
    if m.term == 0 && !matches!(message, Message::ReadRequest { .. }) {
        return Err("invalid term 0".into());
    }
    Ok(m)
}

fn type_of(message: &Message) -> Option<eraftpb::MessageType> {
    use eraftpb::MessageType as T;
    Some(match message {
        Message::Append { .. } => T::MsgAppend,
        Message::AppendReply(_) => T::MsgAppendResponse,
        Message::PreVote(_) => T::MsgRequestPreVote,
        Message::PreVoteReply(_) => T::MsgRequestPreVoteResponse,
        Message::Vote(_) => T::MsgRequestVote,
        Message::VoteReply(_) => T::MsgRequestVoteResponse,
        Message::Snapshot { .. } => T::MsgSnapshot,
        Message::Heartbeat { .. } => T::MsgHeartbeat,
        Message::HeartbeatReply { .. } => T::MsgHeartbeatResponse,
        Message::TakeOver { .. } => T::MsgTimeoutNow,
        Message::ReadRequest { .. } => T::MsgReadIndex,
        Message::ReadReply { .. } => T::MsgReadIndexResp,
        Message::Present { .. } | Message::Vouch { .. } | Message::Marks { .. } => return None,
    })
}

/// The entries of an append; each must follow the one before it.
fn entries_in(
    entries: &[Entry],
    previous: Index,
    term: Term,
) -> Result<Vec<eraftpb::Entry>, Cause> {
    let follows = |(at, entry): (usize, &Entry)| {
        let index = previous.0.checked_add(1 + at as u64);
        index == Some(entry.index.0) && entry.term <= term
    };
    if !entries.iter().enumerate().all(follows) {
        return Err("non-consecutive entries".into());
    }
    entries.iter().map(entry_in).collect()
}

fn read_entry(read: ReadContext) -> eraftpb::Entry {
    let mut entry = eraftpb::Entry::default();
    entry.data = read_in(read).into();
    entry
}
