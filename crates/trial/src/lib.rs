//! A whole fleet of real processes on this machine, for the demo, benchmarks and end-to-end tests.
//!
//! **What it is.** [`Fleet`] starts the production binary as a hub, mirrors and agents in a folder
//! of its own, on ports of its own, and plays with it only by public commands and by signals; what
//! it looks at, it reads from the agents' public port, as an operator.
//!
//! **What it must never know.** The inside of any part. It is no part of the product: nothing
//! depends on it but `xtask` and tests.
//!
//! **Where to start reading.** [`Fleet::start`], then [`watch`] (how it waits without sleeping
//! blindly) and [`release`] (what it publishes).

pub mod evidence;
mod fleet;
mod ports;
pub mod prober;
mod process;
pub mod release;
pub mod watch;

pub use fleet::{Agent, Fleet, FleetOptions, replace_mirror};
pub use ports::Ports;
pub use process::Process;
