//! The infrastructure registry: what groups share with each other and operators with the fleet.
//!
//! **What it is.** One trait, [`Registry`], that maps onto etcd v3 (keys, revisions, multi-key
//! transactions with comparisons, a watch that can answer *compacted*); the hub's durable backend
//! ([`EmbeddedRegistry`]); the client for the hub's API ([`RemoteRegistry`]); and on top the key
//! layout, the records, and typed reads and writes.
//!
//! **What it must never know.** Who may write what (the hub decides), how a rollout proceeds
//! (core), how to reach the hub (wire).
//!
//! **Where to start reading.** [`api`] is the contract, [`keys`] and [`records`] are the content,
//! [`state`] is the behaviour as plain data; [`embedded`] makes it durable.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

pub mod api;
pub mod attest;
pub mod embedded;
pub mod fleet;
pub mod keys;
pub mod records;
pub mod remote;
pub mod seen;
pub mod state;
pub mod typed;

mod disk;
mod shared;

pub use api::{
    Compare, Event, KeyValue, Op, RangeAnswer, RangeRequest, Registry, RegistryError, Selector,
    Txn, TxnAnswer, WatchAnswer, WatchReply, WatchRequest,
};
pub use disk::OpenError;
pub use embedded::EmbeddedRegistry;
pub use remote::RemoteRegistry;
pub use seen::{Answered, Asked, Seen, SeenRecord};
pub use typed::FencedPut;

#[cfg(test)]
mod crash_test;
#[cfg(test)]
mod embedded_test;
#[cfg(test)]
mod golden_test;
#[cfg(test)]
mod state_test;
#[cfg(test)]
mod typed_test;
