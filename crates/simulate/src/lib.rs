//! Simulation: members and servers in one thread, driven by one seed over virtual time.
//!
//! Tests are built from this crate; production never depends on it. It must never read a clock,
//! start a thread or touch a file: a run is a function of its seed, so that a failure is replayed
//! by the one line that it prints.
//!
//! Start reading at [`fleet`] (groups of servers), [`members`] (the production member of one group)
//! and [`raft`] (the consensus of one group).

pub mod fleet;
pub mod members;
pub mod raft;
