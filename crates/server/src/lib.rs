//! An agent's decisions, without its IO.
//!
//! **What it is.** Every server's decisions, as state machines that take an input and the time and
//! return effects: plain data with ids. The agent is the shell around them (loops, sockets, files,
//! threads); the simulator is another shell, so a seed finds the bugs of the code that runs in
//! production.
//!
//! **What it must never know.** Clocks, randomness, IO, threads, async, logging. Time and choices
//! arrive in inputs; messages and writes leave as effects. Its `clippy.toml` enforces that.
//!
//! **Where to start reading.** `app` (one app on one server), `asking` (orders and how fresh they
//! are), `fetching` (which artifacts may be fetched), `outbox` (reports until the group has them),
//! `renewal` (this server's certificate).
//! For the few servers that carry the group's log: `member` (one step of the member), `leading`
//! (what the leader observes, and when it plans), `heirs` (who leads instead if its server cannot),
//! `answers` (requests to a member), `copies` (two machines as one server), `records` and `offers`
//! (registry and repository), `errands` (what fails there), `membership` (which servers carry the
//! log), `addresses` (where they are).

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]
#![deny(clippy::disallowed_methods, clippy::disallowed_types, clippy::disallowed_macros)]

pub mod addresses;
pub mod announced;
pub mod answers;
#[cfg(test)]
mod answers_test;
pub mod app;
pub mod asking;
pub mod contacts;
#[cfg(test)]
mod contacts_test;
pub mod copies;
pub mod errands;
pub mod fetching;
pub mod health_pace;
pub mod heirs;
pub mod leading;
#[cfg(test)]
mod leading_test;
pub mod machines;
pub mod member;
#[cfg(test)]
mod member_test;
pub mod membership;
#[cfg(test)]
mod membership_test;
pub mod offers;
pub mod outbox;
mod pace;
pub mod records;
#[cfg(test)]
mod records_test;
pub mod renewal;
mod silence;
pub mod space;
#[cfg(test)]
mod testing;
pub mod transfers;
