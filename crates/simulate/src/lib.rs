//! Simulation: members and servers in one thread, driven by one seed over virtual time.
//!
//! **What it is.** Virtual hosts, networks, disks and clocks around production code. Tests are
//! built from this crate; production never depends on it. A run is a function of its seed, so one
//! printed line replays a failure.
//!
//! **What it must never know.** Clocks, threads, files; only `main.rs` looks at the time.
//!
//! **Where to start reading.** [`fleet`] (groups of servers and their members), [`raft`] (the
//! consensus of one group); `main.rs` is `cargo xtask simulate`.

mod digest;
pub mod fleet;
pub mod mutations;
pub mod play;
pub mod raft;
