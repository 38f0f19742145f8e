//! What people see of a fleet: judgement, sentences, hints and tables, made of facts.
//!
//! Pure functions from what groups and the hub answered ([`cohort_wire::agent::GroupStatus`]) to
//! text and to the shapes of `-o json`. It must never ask anybody, read a clock or parse a command
//! line: the command line uses it today; the hub, a dashboard or a notifier can.
//!
//! Start reading at [`report`], which judges; [`waiting`] has the sentences, [`command`] every
//! command that a hint can name.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

pub mod command;
pub mod difference;
pub mod figures;
pub mod groups;
pub mod hint;
pub mod moving;
pub mod plan;
pub mod report;
pub mod status;
pub mod table;
pub mod transfer;
pub mod waiting;
pub mod why;

#[cfg(test)]
#[path = "sample_test.rs"]
mod sample;
