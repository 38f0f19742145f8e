//! The deployment state machine of a group, as pure as it can be.
//!
//! **What it is.** Replicated state as plain data; [`State::apply`] as its only writer; [`plan()`],
//! which says what the leader proposes; [`State::orders`], which servers obey;
//! [`steps::next_action`], the step logic of a server.
//!
//! **What it must never know.** Clocks, randomness, IO, threads, async, logging. Time, ids and
//! choices arrive inside commands. A test on this crate's dependencies and its `clippy.toml` hold
//! it to that.
//!
//! **Where to start reading.** [`phase`] has the states as one sentence, [`command`] the entries,
//! `transitions` the arrows; then [`plan()`].

#![deny(clippy::disallowed_methods, clippy::disallowed_types, clippy::disallowed_macros)]

mod apply;
pub mod capacity;
mod check;
pub mod command;
pub mod gate;
pub mod ids;
pub mod orders;
mod orders_of;
pub mod phase;
pub mod placement;
#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod placement_test;
pub mod plan;
pub mod policy;
mod prestage;
pub mod release;
pub mod report;
mod reports;
pub mod state;
pub mod steps;
mod transitions;
pub mod waiting;
mod wave;

pub use command::{Body, Command, Event, Rejection};
pub use plan::{Observations, Offer, Plan, plan};
pub use state::State;
