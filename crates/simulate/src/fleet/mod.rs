//! A fleet in one thread: groups behind a totally ordered log, servers that run the production
//! agent's decisions, one virtual clock, and faults that a script tells or a seed draws.
//!
//! Production code decides what a server asks, reports, fetches and does (`cohort-server`,
//! `cohort-transfer`, `cohort-core`); virtual are its host, disk, network, hub and mirror. Raft is
//! left out on purpose: a group here is its committed state and whoever leads. A change of leader
//! still means what it means (observations start over, proposals get lost or come late). The
//! production member under faults has a simulation of its own.
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
