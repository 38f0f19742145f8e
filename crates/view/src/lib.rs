//! What people see of a fleet: judgement, sentences, hints and tables, derived from facts.
//!
//! **What it is.** Pure functions from the responses of groups and the hub
//! ([`cohort_wire::agent::GroupStatus`]) to text and to the shapes of `-o json`. The command line
//! uses it today; the hub, a dashboard or a notifier can.
//!
//! **What it must never know.** Sockets, clocks, and the parser of a command line.
//!
//! **Where to start reading.** [`report`], which judges; [`waiting`] has the sentences, [`command`]
//! every command that a hint can name.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

pub mod command;
pub mod difference;
pub mod doing;
pub mod events;
pub mod figures;
pub mod groups;
pub mod hint;
pub mod moving;
pub mod plan;
pub mod report;
pub mod server;
mod silence;
pub mod status;
pub mod table;
pub mod transfer;
pub mod waiting;
pub mod why;
pub mod words;

#[cfg(test)]
#[path = "golden_test.rs"]
mod golden;
#[cfg(test)]
#[path = "sample_test.rs"]
mod sample;
