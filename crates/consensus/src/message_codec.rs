//! The encoding of messages.
//!
//! ```text
//!  0  u8   version (1)
//!  1  u8   kind
//!  2  u64  incarnation
//! 10  u64  from
//! 18  u64  to
//! 26  u64  session
//! 34  u64  sequence
//! 42  u16  length of group, then group (UTF-8)
//!     then, by kind:
//!  1  append           term, previous, previous term, commit (u64 each), u32 count, entries
//!  2  append reply     term, index, commit (u64), rejected (u8); if so: index, term (u64)
//!  3  pre-vote         term, last, last term, commit, commit term (u64), handed over (u8)
//!  4  pre-vote reply   term (u64), refused (u8), commit, commit term (u64)
//!  5  vote             as 3
//!  6  vote reply       as 4
//!  7  snapshot         term (u64), snapshot
//!  8  heartbeat        term, commit (u64), read (u8); if so: member, boot epoch, counter (u64)
//!  9  heartbeat reply  as 8
//! 10  take over        term (u64)
//! 11  read request     member, boot epoch, counter (u64)
//! 12  read reply       term, index (u64), member, boot epoch, counter (u64)
//! ```
//!
//! Entries and snapshots are laid out as in [`cohort_store::encoding`], numbers little-endian.
//! There is no checksum: messages travel inside an authenticated stream.

use cohort_store::encoding::{DecodeError, Reader, Record as _, Writer};
use cohort_store::{Entry, Index, RaftId, Snapshot, Term};

use crate::{AppendReply, Envelope, Message, ReadContext, VoteReply, VoteRequest};

/// The version that every message starts with.
const VERSION: u8 = 1;

/// The largest message accepted: the largest snapshot, with room for the rest.
pub const ENVELOPE_BYTES_MAX: usize = 40 * 1024 * 1024;

/// Entries in one message. The library fills messages by bytes; entries without data are counted
/// as a few bytes each, which keeps the number far below this.
const ENTRIES_MAX: usize = 1024 * 1024;

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    #[error("the message has {0} bytes, more than {ENVELOPE_BYTES_MAX}")]
    TooLarge(usize),
    #[error("message version {0} is not known")]
    Version(u8),
    #[error("message kind {0} is not known")]
    Kind(u8),
    /// The bytes are not laid out as above.
    #[error("the message is malformed")]
    Malformed(#[from] DecodeError),
}

impl Envelope {
    /// Encodes the message as drawn above.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut w = Writer::default();
        w.u8(VERSION);
        w.u8(kind(&self.message));
        w.u64(self.incarnation);
        w.u64(self.from.0);
        w.u64(self.to.0);
        w.u64(self.session);
        w.u64(self.sequence);
        w.text(&self.group);
        write(&mut w, &self.message);
        w.finish()
    }

    /// Decodes untrusted bytes.
    ///
    /// # Errors
    /// When it is too large, of another version, or malformed; nothing of it is kept.
    pub fn decode(bytes: &[u8]) -> Result<Envelope, EnvelopeError> {
        if bytes.len() > ENVELOPE_BYTES_MAX {
            return Err(EnvelopeError::TooLarge(bytes.len()));
        }
        let mut r = Reader::new(bytes);
        match r.u8()? {
            VERSION => {}
            version => return Err(EnvelopeError::Version(version)),
        }
        let kind = r.u8()?;
        let incarnation = r.u64()?;
        let from = r.id()?;
        let to = r.id()?;
        let session = r.u64()?;
        let sequence = r.u64()?;
        let group = r.text()?.to_owned();
        let message = read(&mut r, kind)?;
        r.finish()?;
        Ok(Envelope { group, incarnation, from, to, session, sequence, message })
    }
}

fn kind(message: &Message) -> u8 {
    match message {
        Message::Append { .. } => 1,
        Message::AppendReply(_) => 2,
        Message::PreVote(_) => 3,
        Message::PreVoteReply(_) => 4,
        Message::Vote(_) => 5,
        Message::VoteReply(_) => 6,
        Message::Snapshot { .. } => 7,
        Message::Heartbeat { .. } => 8,
        Message::HeartbeatReply { .. } => 9,
        Message::TakeOver { .. } => 10,
        Message::ReadRequest { .. } => 11,
        Message::ReadReply { .. } => 12,
    }
}

fn write(w: &mut Writer, message: &Message) {
    match message {
        Message::Append { term, previous, previous_term, commit, entries } => {
            for number in [term.0, previous.0, previous_term.0, commit.0] {
                w.u64(number);
            }
            w.u32(u32::try_from(entries.len()).unwrap_or(u32::MAX));
            for entry in entries {
                entry.write(w);
            }
        }
        Message::AppendReply(reply) => {
            for number in [reply.term.0, reply.index.0, reply.commit.0] {
                w.u64(number);
            }
            w.u8(u8::from(reply.rejected.is_some()));
            if let Some((index, term)) = reply.rejected {
                w.u64(index.0);
                w.u64(term.0);
            }
        }
        Message::PreVote(request) | Message::Vote(request) => {
            let VoteRequest { term, last, last_term, commit, commit_term, handed_over } = request;
            for number in [term.0, last.0, last_term.0, commit.0, commit_term.0] {
                w.u64(number);
            }
            w.u8(u8::from(*handed_over));
        }
        Message::PreVoteReply(reply) | Message::VoteReply(reply) => {
            w.u64(reply.term.0);
            w.u8(u8::from(reply.refused));
            w.u64(reply.commit.0);
            w.u64(reply.commit_term.0);
        }
        Message::Snapshot { term, snapshot } => {
            w.u64(term.0);
            snapshot.write(w);
        }
        Message::Heartbeat { term, commit, read }
        | Message::HeartbeatReply { term, commit, read } => {
            w.u64(term.0);
            w.u64(commit.0);
            w.u8(u8::from(read.is_some()));
            if let Some(read) = read {
                write_read(w, *read);
            }
        }
        Message::TakeOver { term } => w.u64(term.0),
        Message::ReadRequest { read } => write_read(w, *read),
        Message::ReadReply { term, index, read } => {
            w.u64(term.0);
            w.u64(index.0);
            write_read(w, *read);
        }
    }
}

fn write_read(w: &mut Writer, read: ReadContext) {
    w.u64(read.member.0);
    w.u64(read.boot_epoch);
    w.u64(read.counter);
}

fn read(r: &mut Reader<'_>, kind: u8) -> Result<Message, EnvelopeError> {
    Ok(match kind {
        1 => {
            let (term, previous) = (Term(r.u64()?), Index(r.u64()?));
            let (previous_term, commit) = (Term(r.u64()?), Index(r.u64()?));
            let count = r.u32()? as usize;
            if count > ENTRIES_MAX {
                return Err(DecodeError::Value("number of entries").into());
            }
            let entries = (0..count).map(|_| Entry::read(r)).collect::<Result<_, _>>()?;
            Message::Append { term, previous, previous_term, commit, entries }
        }
        2 => {
            let (term, index, commit) = (Term(r.u64()?), Index(r.u64()?), Index(r.u64()?));
            let rejected = match r.flag("rejected")? {
                true => Some((Index(r.u64()?), Term(r.u64()?))),
                false => None,
            };
            Message::AppendReply(AppendReply { term, index, commit, rejected })
        }
        3 => Message::PreVote(read_vote_request(r)?),
        4 => Message::PreVoteReply(read_vote_reply(r)?),
        5 => Message::Vote(read_vote_request(r)?),
        6 => Message::VoteReply(read_vote_reply(r)?),
        7 => Message::Snapshot { term: Term(r.u64()?), snapshot: Snapshot::read(r)? },
        8 | 9 => {
            let (term, commit) = (Term(r.u64()?), Index(r.u64()?));
            let read = match r.flag("with read")? {
                true => Some(read_read(r)?),
                false => None,
            };
            match kind {
                8 => Message::Heartbeat { term, commit, read },
                _ => Message::HeartbeatReply { term, commit, read },
            }
        }
        10 => Message::TakeOver { term: Term(r.u64()?) },
        11 => Message::ReadRequest { read: read_read(r)? },
        12 => {
            let (term, index) = (Term(r.u64()?), Index(r.u64()?));
            Message::ReadReply { term, index, read: read_read(r)? }
        }
        kind => return Err(EnvelopeError::Kind(kind)),
    })
}

fn read_vote_request(r: &mut Reader<'_>) -> Result<VoteRequest, DecodeError> {
    Ok(VoteRequest {
        term: Term(r.u64()?),
        last: Index(r.u64()?),
        last_term: Term(r.u64()?),
        commit: Index(r.u64()?),
        commit_term: Term(r.u64()?),
        handed_over: r.flag("handed over")?,
    })
}

fn read_vote_reply(r: &mut Reader<'_>) -> Result<VoteReply, DecodeError> {
    Ok(VoteReply {
        term: Term(r.u64()?),
        refused: r.flag("refused")?,
        commit: Index(r.u64()?),
        commit_term: Term(r.u64()?),
    })
}

fn read_read(r: &mut Reader<'_>) -> Result<ReadContext, DecodeError> {
    Ok(ReadContext { member: RaftId(r.u64()?), boot_epoch: r.u64()?, counter: r.u64()? })
}
