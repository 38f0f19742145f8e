//! Moving artifacts: from a mirror to one server of a group, and from server to server.
//!
//! A fetch asks for runs of units (64 KiB), verifies each against the unit hashes (which are
//! verified against the root that the group's log names), and writes it in place. Nothing that was
//! received is believed, kept or passed on before that. Whom to ask for what is a pure function.
//!
//! This crate must never know why an artifact is wanted: no rollouts, no waves, no service. Nor does
//! it unpack anything. It obeys a [`cohort_core::orders::FetchOrder`] and says when it is done.
//!
//! Start reading at [`plan()`] (who is asked for what), then [`fetch()`] (plan, ask, verify, write),
//! [`ArtifactStore`] (the disk), [`bulk_router`] (the other side). [`Downloads`] holds all fetches
//! of an agent together.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod budget;
mod downloads;
mod durable;
mod fetch;
mod frame;
mod guidance;
mod limits;
mod mirrors;
mod offence;
mod part;
mod peers;
mod plan;
mod progress;
mod request;
mod serve;
mod sources;
mod store;
mod store_error;
mod subscription;
mod tracker;
mod transport;
mod unit_set;

pub use budget::Budget;
pub use downloads::{Downloads, EndedFetch, FetchStatus, ORDERS_MAX};
pub use fetch::{FetchContext, FetchError, fetch};
pub use guidance::{Guidance, Guides};
pub use limits::Limits;
pub use mirrors::{MIRRORS_MAX, MirrorError, MirrorList, MirrorRecord, rank};
pub use offence::{Offence, Offences};
pub use part::{Part, WriteError};
pub use peers::WirePeers;
pub use plan::{
    Action, FetchWait, Hashes, Plan, Situation, SourceId, SourceKind, SourceView, plan,
};
pub use progress::{ByteCounters, Progress, SourceReport};
pub use request::RequestError;
pub use serve::{ServeLimits, bulk_router};
pub use store::delta::ApplyError;
pub use store::{ArtifactStore, Claim, Collected, FreeSpace, StoreOptions};
pub use store_error::StoreError;
pub use subscription::{RUNS_MAX, SubscribeRequest};
pub use tracker::{
    Accusation, FAN_OUT_MAX, HAVE_RUNS_MAX, HEADS_MAX, HOLDERS_MAX, Layout, Member, OFFENCES_MAX,
    Participant, REPORTS_MAX, ServerView, Situation as TransferSituation, TRANSFER, Told, Tracker,
    TrackerCalls, TrackerError, TransferAnswer, TransferReport, TransferRequest, TransferView,
    follow, lease_runs, plan as plan_transfer,
};
pub use transport::{
    ByteStream, NoPeers, PeerTransport, hashes_request_path, subscription_path, units_request_path,
};
pub use unit_set::{UnitRun, UnitSet};

#[cfg(test)]
mod bad_peers_test;
#[cfg(test)]
mod budget_test;
#[cfg(test)]
mod delta_group_test;
#[cfg(test)]
mod fetch_test;
#[cfg(test)]
mod group_test;
#[cfg(test)]
mod mirrors_test;
#[cfg(test)]
mod offence_test;
#[cfg(test)]
mod peers_test;
#[cfg(test)]
mod plan_test;
#[cfg(test)]
mod sources_test;
#[cfg(test)]
mod store_test;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod unit_set_test;
