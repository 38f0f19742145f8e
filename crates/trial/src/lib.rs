//! A whole fleet of real processes on this machine, for the demo, benchmarks and end-to-end tests.
//!
//! **What it is.** [`Fleet`] starts the production binary as a hub, mirrors and agents, in its own
//! directory and on its own ports, and drives it only by public commands and signals; it reads the
//! agents' public ports and logs, as an operator would.
//!
//! **What it must never know.** The internals of any component. It is not part of the product: only
//! `xtask` and tests depend on it.
//!
//! **Where to start reading.** [`Fleet::start`], then [`watch`] and [`logs`] (waiting for states
//! and events) and [`release`] (what it publishes).

mod fleet;
pub mod flood;
pub mod logs;
mod ports;
mod probe;
mod process;
pub mod release;
pub mod watch;

pub use fleet::{Agent, Fleet, FleetOptions, Programs, replace_mirror};
pub use process::Process;
