//! Consensus: a replicated log of opaque commands, with membership changes, linearizable reads,
//! snapshots and leadership transfer.
//!
//! **What it is.** [`Node`] is one member, as a state machine without threads, clocks or sockets.
//! Its owner calls [`Node::tick`] every [`TICK`], [`Node::receive`] for every message, and after
//! each of them [`Node::drain`], which persists everything through a [`LogStore`] and returns what
//! to send and what to apply. No message leaves before what it promises is durable.
//!
//! This is the only crate that knows the underlying consensus library (`raft`), and it exposes none
//! of its types. `docs/design/001-raft-library.md` lists the library's traps and what we do about
//! each; comments in the code mark them as *trap*.
//!
//! **What it must never know.** What commands mean; what a server, release or rollout is.
//!
//! **Where to start reading.** [`Node`], then `drain.rs` (the order of things), then
//! `membership.rs`.
//!
//! ```
//! use cohort_consensus::{Config, Node, RaftId};
//! use cohort_store::{Disk, FaultyStore};
//!
//! let config = Config::new("web", 1, RaftId(1));
//! let mut store = FaultyStore::open(&Disk::new())?;
//! Node::bootstrap(&mut store, &config, [RaftId(1)], b"state".to_vec())?;
//! let mut node = Node::open(store, config)?;
//! let restored = node.drain()?.installed_snapshot.expect("the first drain restores the state");
//! assert_eq!(restored.data, b"state");
//! while !node.status().is_leader() {
//!     node.tick();
//!     node.drain()?;
//! }
//! let (index, _term) = node.propose(b"command".to_vec())?;
//! let effects = node.drain()?;
//! let last = effects.committed.last().expect("one voter commits at once");
//! assert_eq!((last.index, last.data.as_slice()), (index, b"command".as_slice()));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod compaction;
mod config;
mod convert;
mod drain;
mod effects;
mod error;
mod filter;
mod handover;
mod membership;
mod message;
mod node;
mod plausible;
mod proof;
mod reads;
mod status;
mod storage;
mod timeout;

pub use cohort_store::{
    Configuration, Image, Index, LogStore, Mark, RaftId, Snapshot, StoreError, Term,
};
pub use config::{Config, Limits, TICK, Timing, TimingError, Weaken};
pub use effects::{Committed, Effects, InstalledSnapshot};
pub use error::{CompactError, MembershipError, NodeError, ProposeError, ReadError, TransferError};
pub use handover::Handover;
pub use message::{
    AppendReply, ENVELOPE_BYTES_MAX, Envelope, EnvelopeError, Message, ReadContext, Verdict,
    VoteReply, VoteRequest,
};
pub use node::Node;
pub use reads::ReadId;
pub use status::{Dropped, PeerProgress, Replication, Role, Status};

#[cfg(test)]
mod config_test;
#[cfg(test)]
mod membership_test;
#[cfg(test)]
mod message_test;
#[cfg(test)]
mod node_test;
#[cfg(test)]
mod proof_test;
#[cfg(test)]
mod testing;
