//! Messages between members: our own types, never the library's.

use std::collections::{BTreeMap, BTreeSet};

use borsh::{BorshDeserialize, BorshSerialize};
use cohort_store::encoding::{self, DecodeError};
use cohort_store::{Entry, Index, Mark, RaftId, Snapshot, Term};

/// The version that every message starts with.
const VERSION: u8 = 1;

/// The largest message accepted: the largest snapshot, with room for the rest.
pub const ENVELOPE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// One message with sender and receiver.
///
/// `session` and `sequence` order the messages from one sender to one receiver. The receiver drops
/// late messages, duplicates, and those of an older session: reads and append replies must not
/// overtake each other.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct Envelope {
    pub group: String,
    pub incarnation: u64,
    pub from: RaftId,
    /// The receiving member.
    pub to: RaftId,
    /// The sender's process: a random number.
    pub life: u64,
    /// How often the sender has written to its log.
    pub written: u64,
    /// The sender's connection: its boot epoch, and its number of connections since.
    pub session: u64,
    /// The message's number in the session, from 1.
    pub sequence: u64,
    pub message: Message,
}

/// Why bytes are not a message.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    #[error("the message has {0} bytes, more than {ENVELOPE_BYTES_MAX}")]
    TooLarge(usize),
    #[error("the message is unreadable")]
    Malformed(#[from] DecodeError),
}

impl Envelope {
    /// Encodes the message behind its version. There is no checksum: messages travel inside an
    /// authenticated stream.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        encoding::encode(VERSION, self)
    }

    /// Decodes untrusted bytes.
    ///
    /// # Errors
    /// If it is too large, of another version, or malformed; it is then discarded as a whole.
    pub fn decode(bytes: &[u8]) -> Result<Envelope, EnvelopeError> {
        if bytes.len() > ENVELOPE_BYTES_MAX {
            return Err(EnvelopeError::TooLarge(bytes.len()));
        }
        Ok(encoding::decode(VERSION, bytes)?)
    }
}

/// The content of a message.
#[derive(Clone, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Message {
    /// The leader's entries, to append after the entry at `previous`.
    Append {
        term: Term,
        /// The position before the first entry.
        previous: Index,
        /// The term of the entry there.
        previous_term: Term,
        /// How far the leader's log is committed.
        commit: Index,
        /// The entries; empty if only the commit position is new.
        entries: Vec<Entry>,
    },
    /// A member's answer to entries or to a snapshot.
    AppendReply(AppendReply),
    /// Asks whether the receiver would vote for the sender, without changing any term.
    PreVote(VoteRequest),
    /// The answer to [`PreVote`](Self::PreVote).
    PreVoteReply(VoteReply),
    /// The sender asks for the receiver's vote.
    Vote(VoteRequest),
    /// The answer to [`Vote`](Self::Vote).
    VoteReply(VoteReply),
    /// The leader's full state, for a member that is too far behind for entries.
    Snapshot { term: Term, snapshot: Snapshot },
    /// The leader is alive.
    Heartbeat {
        term: Term,
        /// How far the receiver's log is known to be committed.
        commit: Index,
        /// The read that this heartbeat confirms, if any.
        read: Option<ReadContext>,
    },
    /// The answer to [`Heartbeat`](Self::Heartbeat).
    HeartbeatReply {
        /// The answering member's term.
        term: Term,
        /// How far its log is committed.
        commit: Index,
        /// The read that the heartbeat asked to confirm.
        read: Option<ReadContext>,
    },
    /// The leader transfers leadership to the receiver, which starts an election at once.
    TakeOver { term: Term },
    /// Asks the leader for a position to read at.
    ReadRequest { read: ReadContext },
    /// The leader's answer: a member that has applied up to `index` may read.
    ReadReply { term: Term, index: Index, read: ReadContext },
    /// The sender has started, or does not know whether the receiver knows this process of it. Its
    /// log had been written `found` times when it started.
    Present { found: u64 },
    /// The answer to [`Present`](Self::Present).
    Vouch {
        /// The process that it is about.
        life: u64,
        verdict: Verdict,
        /// The leader that the answering member follows, or is.
        leader: Option<RaftId>,
        /// The position of the newest membership that it knows,
        configured: Index,
        /// and its voters.
        voters: BTreeSet<RaftId>,
    },
    /// What the leader has heard of the members' disks.
    Marks { marks: BTreeMap<RaftId, Mark> },
}

/// What a member says of a starting peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub enum Verdict {
    /// Nothing speaks against it.
    Fine,
    /// Its disk went back: the member has heard of so many writes.
    Older { written: u64 },
    /// Another process of the same member is heard right now.
    Elsewhere,
    /// The member does not know this process: it has to introduce itself.
    Unknown,
}

/// A member's answer to entries or to a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct AppendReply {
    /// The answering member's term.
    pub term: Term,
    /// The last position that matches; if rejected, the `previous` that did not.
    pub index: Index,
    /// How far its log is committed.
    pub commit: Index,
    /// If rejected: where the logs may match, and the term there.
    pub rejected: Option<(Index, Term)>,
}

/// A request for a vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct VoteRequest {
    /// The term that the vote is for.
    pub term: Term,
    /// The candidate's last entry.
    pub last: Index,
    /// The term of that entry.
    pub last_term: Term,
    /// How far its log is committed.
    pub commit: Index,
    /// The term of that entry.
    pub commit_term: Term,
    /// Whether the leader itself requested this election.
    pub handed_over: bool,
}

/// A vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, BorshSerialize, BorshDeserialize)]
pub struct VoteReply {
    /// The term that the vote is for; if refused, the voter's.
    pub term: Term,
    /// Whether the voter refuses.
    pub refused: bool,
    /// If refused: how far the voter's log is committed.
    pub commit: Index,
    /// The term of that entry.
    pub commit_term: Term,
}

/// One read; never reused (trap: a reused context answers a stale read).
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, BorshSerialize, BorshDeserialize,
)]
pub struct ReadContext {
    /// The member that reads.
    pub member: RaftId,
    pub boot_epoch: u64,
    /// Counts the member's reads since its start.
    pub counter: u64,
}
