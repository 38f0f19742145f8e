//! The deployment state machine of a group, as pure as it can be.
//!
//! **What it is.** Replicated state as plain data; `apply` as its only writer; the planner that
//! says what the leader proposes; the orders that servers obey; the step logic of a server.
//!
//! **What it must never know.** Clocks, randomness, IO, threads, async, logging. Time, ids and
//! choices arrive inside commands. A test on this crate's dependencies and its `clippy.toml` hold
//! it to that.
//!
//! **Where to start reading.** [`ids`], [`release`] and [`policy`] are the words.

pub mod ids;
pub mod orders;
pub mod policy;
pub mod release;
pub mod report;
pub mod steps;
