//! The consensus of one group under faults.
//!
//! Five servers run [`cohort_consensus::Node`] over simulated disks and a simulated network:
//!
//! - the **network** loses, duplicates, delays and reorders packets, and partitions;
//! - **disks** fail before or after a batch is durable, which ends the process; power fails at any
//!   event; some disks are permanently lost, and the server returns under a new number;
//! - **clocks** run at different speeds, and processes pause;
//! - **a member lies**, in some runs;
//! - **clients** propose, read on any member, transfer leadership, change the membership, and take
//!   snapshots, all at random.
//!
//! After every event, [`Checker`] checks the invariants. At the end all faults heal, and the group
//! must converge. [`run`] does all of this for one seed; [`Script`] runs the explained examples in
//! `scenarios/consensus/`.

mod chaos;
mod checker;
mod lies;
mod member;
mod network;
mod script;
mod world;

pub use checker::{Checker, NOT_A_VOTER, NOT_CONVERGED, STALE_READ};
pub use lies::Lies;
pub use script::Script;
pub use world::{Outcome, Setup, Violation, run};
