//! The daemon on every server: runner and member wired together.
//!
//! **What it is.** [`run`] joins the fleet on the first start, then runs for as long as the server
//! lives: the *runner* (every server) asks a member for orders and carries them out through
//! `cohort-host`; the *member* (few servers) carries the group's log on a thread of its own and,
//! while it leads, plans. Both are shells around `cohort-server`.
//!
//! **What it must never know.** How a decision is made (core, server), how a step is done (host),
//! what a signature is (artifact, identity).
//!
//! **Where to start reading.** `member.rs` (the thread that owns the log), `control.rs` (the
//! control port), `runner.rs` and `app.rs` (what a server does), `duties.rs` (the leader's
//! errands).

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod app;
mod app_thread;
mod attesting;
mod budgets;
mod checking;
mod complaint;
pub mod config;
mod contacts;
mod control;
#[cfg(test)]
mod data_dir_test;
mod deltas;
mod download;
mod duties;
mod error;
mod events;
mod fetching;
mod join;
mod killswitch;
mod logs;
mod member;
mod membership;
mod metrics;
mod net;
mod pressure;
mod probe;
mod proofs;
mod renewal;
mod reporter;
mod revoking;
mod runner;
mod service_user;
mod shared;
mod space;
mod start;
mod status;
mod submitted;
mod tasks;
#[cfg(test)]
mod testing;
mod transfer_status;
mod transfers;
mod trust;
mod whereabouts;
mod yielding;

pub use error::AgentError;
pub use member::MemberError;
pub use probe::READY_PERCENT;
pub use start::run;
