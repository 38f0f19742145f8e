//! Moving artifacts: from a mirror to one server of a group, and from server to server.
//!
//! **What it is.** The shell around `cohort-transfer`, which decides who fetches what from whom. It
//! sends the requests, verifies each unit (64 KiB) against the unit hashes, which are verified
//! against the root in the group's log, and writes it in place. Nothing received is stored or
//! forwarded before that.
//!
//! **What it must never know.** Why an artifact is wanted: no rollouts, waves or services. Nor what
//! is in it. It follows a [`cohort_core::orders::FetchOrder`] and says when it is done.
//!
//! **Where to start reading.** `fetch` (decide, request, verify, write), [`ArtifactStore`] (the
//! disk), [`bulk_router`] (the serving side), [`Downloads`] (all fetches of an agent), [`follow`]
//! and [`SharedTracker`] (between server and leader).

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod body;
mod budget;
mod downloads;
mod fetch;
mod follow;
mod frame;
#[cfg(feature = "testing")]
pub mod fuzzing;
mod guides;
mod leading;
mod mirrors;
mod part;
mod peers;
mod progress;
mod request;
mod serve;
mod store;
mod store_error;
mod subscription;

pub use budget::Budget;
pub use cohort_transfer::tracker::{
    Accusation, Participant, ServerView, TRANSFER, TrackerError, TransferAnswer, TransferReport,
    TransferRequest, TransferView,
};
pub use cohort_transfer::{
    FetchWait, Guidance, Limits, Offence, Offences, SourceKind, SourceName, SourceReport, UnitRun,
    UnitSet,
};
pub use downloads::{Downloads, EndedFetch, FetchStatus, ORDERS_MAX};
pub use fetch::FetchContext;
pub use follow::{CallError, TrackerCalls, follow};
pub use guides::Guides;
pub use leading::SharedTracker;
pub use mirrors::{MIRRORS_MAX, MirrorError, MirrorList};
pub use part::{Part, WriteError};
pub use peers::WirePeers;
pub use progress::{ByteCounters, Progress};
pub use serve::{ServeLimits, bulk_router};
pub use store::delta::ApplyError;
pub use store::{ArtifactStore, Claim, Collected};
pub use store_error::StoreError;
pub use subscription::{RUNS_MAX, SubscribeRequest};

// The pure crate does not know the artifact format, but its constants must match.
const _: () = assert!(
    cohort_transfer::UNIT_BYTES == cohort_artifact::UNIT_BYTES as u64
        && cohort_transfer::ARTIFACT_BYTES_MAX == cohort_artifact::ARTIFACT_BYTES_MAX
);

#[cfg(test)]
mod bad_peers_test;
#[cfg(test)]
mod budget_test;
#[cfg(test)]
mod delta_group_test;
#[cfg(test)]
mod fetch_test;
#[cfg(test)]
mod golden_test;
#[cfg(test)]
mod group_test;
#[cfg(test)]
mod mirrors_test;
#[cfg(test)]
mod offence_test;
#[cfg(test)]
mod peers_test;
#[cfg(test)]
mod store_test;
#[cfg(test)]
mod testing;
