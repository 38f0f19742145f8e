//! The infrastructure registry: what groups share with each other and operators with the fleet.
//!
//! **What it is.** One trait, [`Registry`], that maps onto etcd v3 (keys, revisions, multi-key
//! transactions with comparisons, a watch that can answer *compacted*); the hub's durable backend
//! ([`EmbeddedRegistry`]) and its in-memory replacement for tests ([`MemoryRegistry`]); the client
//! for the hub's API ([`RemoteRegistry`]); and on top the key layout, the records, and typed reads
//! and writes.
//!
//! **What it must never know.** Who may write what (the hub decides), how a rollout proceeds
//! (core), how to reach the hub (wire).
//!
//! **Where to start reading.** [`api`] is the contract, [`keys`] and [`records`] are the content,
//! [`state`] is the behaviour as plain data; [`embedded`] makes it durable.

pub mod api;
pub mod embedded;
pub mod fenced;
pub mod fleet;
pub mod follow;
pub mod keys;
pub mod memory;
pub mod records;
pub mod remote;
pub mod state;
pub mod typed;

mod disk;

pub use api::{
    Compare, Comparison, Event, Field, KeyValue, Op, RangeAnswer, RangeRequest, Registry,
    RegistryError, Selector, Txn, TxnAnswer, WatchAnswer, WatchReply, WatchRequest,
};
pub use disk::OpenError;
pub use embedded::{EmbeddedRegistry, Unmade};
pub use fenced::{FencedPut, put_fenced};
pub use follow::{Follower, Refreshed};
pub use memory::MemoryRegistry;
pub use remote::RemoteRegistry;

#[cfg(test)]
mod crash_test;
#[cfg(test)]
mod embedded_test;
#[cfg(test)]
mod follow_test;
#[cfg(test)]
mod state_test;
#[cfg(test)]
mod typed_test;
