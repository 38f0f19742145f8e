//! Which server fetches which bytes from which source.
//!
//! **What it is.** Two state machines without IO. The [`Tracker`] runs at a group's leader: servers
//! report what they hold, and each gets [`Guidance`] in response, that is, which servers feed it
//! and which units it may take from a mirror. The [`Fetcher`] runs in every server, once per
//! artifact: it turns guidance, or without a leader the server's order, into requests, and
//! remembers how each source behaved. Their effects are plain data with ids.
//!
//! **What it must never know.** A clock, randomness, threads, sockets, files, logs: a whole zone
//! must be able to run in one thread from one seed. Nor why an artifact is wanted.
//!
//! **Where to start reading.** [`Fetcher::step`] for a server, [`tracker`] for the leader. The
//! shell around both, which moves and verifies the bytes, is `cohort-distribute`.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

pub mod fetcher;
mod guidance;
mod limits;
mod offence;
mod pace;
mod source;
pub mod tracker;
mod unit_set;

pub use fetcher::{Effect, FetchWait, Fetcher, RequestId, Step, What};
pub use guidance::Guidance;
pub use limits::Limits;
pub use offence::{Failure, Offence, Offences};
pub use pace::{NextReport, Pace};
pub use source::{Outcome, SourceId, SourceKind, SourceName, SourceReport, Target};
pub use tracker::Tracker;
pub use unit_set::{UnitRun, UnitSet};

/// Bytes of a unit: verified, stored and forwarded as one. The last one may be shorter.
pub const UNIT_BYTES: u64 = 64 << 10;

/// Longest artifact, in bytes.
pub const ARTIFACT_BYTES_MAX: u64 = 16 << 30;

/// A point in time, as read from a monotonic clock of the caller.
pub type Moment = std::time::Duration;

/// Units of an artifact of `length` bytes.
#[must_use]
pub fn unit_count(length: u64) -> u32 {
    u32::try_from(length.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

/// First byte and number of bytes of a run of units, in an artifact of `length` bytes.
#[must_use]
pub fn span_of(length: u64, run: UnitRun) -> (u64, u64) {
    let start = u64::from(run.first) * UNIT_BYTES;
    let end = (u64::from(run.end()) * UNIT_BYTES).min(length);
    (start, end.saturating_sub(start))
}

#[cfg(test)]
mod unit_set_test;
