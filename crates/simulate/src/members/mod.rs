//! The production member of a group under faults: elections, reads, transfers, placement and
//! claims, as [`cohort_server::member`] decides them.
//!
//! Six servers belong to a group that the first of them founded; the planner's placement spreads
//! the log over five. Disks fail and get lost, processes crash, pause and are stopped, the network
//! loses, doubles, delays and parts, while clients add servers and read. After every step:
//!
//! - two members that have applied the same entries have the same state;
//! - what a client was told to be applied is in every later state, and in every read begun after;
//! - every request is answered once, or its server died;
//! - no member asks for another step forever.
//!
//! At the end everything heals, and the group must be whole again: one leader, five voters that
//! have applied everything, no request without an answer. Start reading at [`run`].

mod host;
mod trouble;
mod world;

pub use world::{Outcome, run};
