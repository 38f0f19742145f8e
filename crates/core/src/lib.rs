//! The deployment state machine of a group: pure functions over plain data.
//!
//! **What it is.** The replicated state; [`State::apply`], its only writer; [`plan()`], what the
//! leader proposes; [`State::orders`], what servers obey; [`steps::next_action`], a server's next
//! step.
//!
//! **What it must never know.** Clocks, randomness, IO, threads, async, logging: time, ids and
//! choices arrive inside commands. Its `clippy.toml` and a test of its dependencies enforce that.
//!
//! **Where to start reading.** [`phase`] has the states as one sentence, [`command`] the log
//! entries, `turn` the arrows between states; then [`plan()`]. [`kill`] stands apart from the log:
//! a minority must be able to stop.

#![deny(clippy::disallowed_methods, clippy::disallowed_types, clippy::disallowed_macros)]

pub mod ability;
mod apply;
pub mod capacity;
mod check;
pub mod command;
pub mod doing;
pub mod errand;
pub mod gate;
pub mod ids;
pub mod kill;
pub mod machine;
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
mod probe;
pub mod reason;
pub mod refused;
mod rejection;
pub mod release;
pub mod report;
mod rollout;
pub mod shared;
#[cfg(test)]
mod shared_test;
pub mod state;
pub mod steps;
pub mod survey;
pub mod trial;
mod turn;
pub mod waiting;
mod wave;

pub use command::{Body, Command, Event, Rejection};
pub use plan::{Observations, Offer, Plan, plan};
pub use state::State;
