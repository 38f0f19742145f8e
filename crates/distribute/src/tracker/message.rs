//! What a server tells the leader of its transfers, and what it hears.

use cohort_core::ids::{Digest, GroupId, ServerId};
use cohort_core::orders::Source;
use serde::{Deserialize, Serialize};

use crate::guidance::Guidance;
use crate::unit_set::UnitRun;

/// `POST` a [`TransferRequest`] to the leader's control port.
pub const TRANSFER: &str = "/v1/transfer";

/// Transfers in one request: a server fetches two at once, the others wait for their turn.
pub const REPORTS_MAX: usize = 8;

/// Runs by which a server tells what it holds; what is beyond counts as missing, which costs a few
/// bytes and nothing else.
pub const HAVE_RUNS_MAX: usize = 256;

/// Holders that are named in a report: as many as an order names, and as many again.
pub const HOLDERS_MAX: usize = 8;

/// How a server's transfers stand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferRequest {
    /// The version of control messages.
    pub version: u32,
    /// The group that it belongs to.
    pub group: GroupId,
    /// At most [`REPORTS_MAX`].
    pub transfers: Vec<TransferReport>,
}

/// How one transfer stands at one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferReport {
    /// Root of the artifact.
    pub artifact: Digest,
    /// Its length in bytes.
    pub length: u64,
    /// The units that are here, verified; at most [`HAVE_RUNS_MAX`] runs.
    pub have: Vec<UnitRun>,
    /// Bytes that this fetch received from mirrors.
    pub mirror_bytes: u64,
    /// Bytes that this fetch received from servers.
    pub peer_bytes: u64,
    /// It asked a mirror and got nothing but failures lately.
    pub mirror_failed: bool,
    /// What it was told before, by this leader or the last: nothing when it was told nothing.
    pub told: Option<Told>,
    /// Servers that hold it whole, as its order says.
    pub holders: Vec<Source>,
    /// Servers that failed it since they last sent something.
    pub silent: Vec<ServerId>,
    /// Servers that sent wrong bytes.
    pub wrong: Vec<ServerId>,
}

/// What a server was told: a new leader takes it over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Told {
    /// Its parent first.
    pub feeds: Vec<ServerId>,
    /// What is leased to it.
    pub lease: Vec<UnitRun>,
}

/// What a server is to do now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferAnswer {
    /// Come back after this long, in milliseconds, when nothing happens before.
    pub again_ms: u64,
    /// Per artifact; for one that is missing here, what was said before stays.
    pub guidance: Vec<(Digest, Guidance)>,
}
