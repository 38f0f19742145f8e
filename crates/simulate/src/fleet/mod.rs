//! A fleet in one thread: servers that run the production agent's decisions, some of them with the
//! production member of their group, one virtual clock, and faults that a script tells or a seed
//! draws.
//!
//! Production code decides what a server asks, reports, fetches and does, and what a member logs,
//! applies and answers (`cohort-server`, `cohort-transfer`, `cohort-core`, `cohort-consensus`);
//! virtual are its host, disks, network, hub and mirror. After every step:
//!
//! - members apply the same entries and have the same state after them; one leads per term, with
//!   every entry that was committed before; a read shows everything that any member had applied
//!   when it began; a command that was acknowledged is in the log (`log`);
//! - what users see, and that what waits says why (`prober`);
//! - every request is answered at most once, and no member asks for another step forever
//!   (`server::member`).
//!
//! Once all faults have ended, every group is whole and runs what its channel points to.
//!
//! Start reading at `world`; `server` is a server, [`script`] has the verbs of `scenarios/*.txt` (a
//! network without delays, one proposal at a time), [`chaos`] draws faults from a seed.

mod behaviour;
mod build;
pub mod chaos;
mod group;
mod log;
mod net;
mod place;
mod prober;
mod registry;
pub mod script;
mod server;
mod world;
