//! The infrastructure registry: what groups tell each other and what people tell the fleet.
//!
//! **What it is.** One trait, [`Registry`], that maps onto etcd v3 (keys, revisions, multi-key
//! transactions with comparisons, a watch that can say *compacted*); the durable backend that lives
//! in the hub ([`EmbeddedRegistry`]); its twin in memory for tests ([`MemoryRegistry`]); the client
//! that reaches it over the hub's port ([`RemoteRegistry`]); and, on top, the key layout, the
//! records, and typed functions to read and write them.
//!
//! **What it must never know.** Who may write what (the hub knows), how a rollout goes on (core
//! knows), how to reach the hub (wire knows).
//!
//! **Where to start reading.** [`api`] is the contract, [`keys`] and [`records`] are what is kept,
//! [`state`] is the whole behaviour as a pure data structure; [`embedded`] only makes it durable.

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
