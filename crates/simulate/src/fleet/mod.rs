//! A fleet in one thread: groups behind a totally ordered log, servers that run the real step
//! logic, one virtual clock, and faults that are told or drawn from a seed.
//!
//! Raft is left out on purpose: a group here is its committed state and whoever leads. What a
//! change of leader means to the state machine is kept (observations begin anew, proposals get
//! lost or come late), so that what is found here is about `cohort_core` alone.
//!
//! Start reading at [`world`]; [`server`] is a server, [`prober`] looks from outside, [`script`]
//! has the verbs of `scenarios/*.txt`, [`chaos`] draws faults from a seed.

pub mod behaviour;
pub mod build;
pub mod chaos;
pub mod group;
pub mod net;
pub mod prober;
pub mod script;
pub mod server;
pub mod world;

pub use behaviour::{Behaviour, Fault};
pub use world::Fleet;
