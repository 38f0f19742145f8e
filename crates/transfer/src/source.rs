//! Sources of bytes.

use std::fmt;

use cohort_core::ids::ServerId;
use cohort_core::orders::Source;
use serde::{Deserialize, Serialize};

use crate::offence::{Failure, Offences};

/// A source's identity within one fetch.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SourceId {
    Server(ServerId),
    /// A mirror, by its index in the configured list.
    Mirror(usize),
}

/// Where a request goes: to a server at its address, or to a mirror.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Server(Source),
    /// A mirror, by its index in the configured list.
    Mirror(usize),
}

/// A source as shown to other servers and people.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceName {
    Server(ServerId),
    /// A mirror's URL without user and password, at most [`SourceName::MIRROR_BYTES_MAX`] bytes.
    Mirror(String),
}

impl SourceName {
    /// Longest URL that is shown or reported, in bytes; longer ones are truncated.
    pub const MIRROR_BYTES_MAX: usize = 200;

    /// The name of the mirror with this URL, without secrets.
    #[must_use]
    pub fn mirror(url: &str) -> Self {
        let end = url.floor_char_boundary(Self::MIRROR_BYTES_MAX);
        Self::Mirror(url[..end].to_owned())
    }

    /// The kind of source.
    #[must_use]
    pub fn kind(&self) -> SourceKind {
        match self {
            SourceName::Server(_) => SourceKind::Peer,
            SourceName::Mirror(_) => SourceKind::Mirror,
        }
    }

    /// The server, unless it is a mirror.
    #[must_use]
    pub fn server(&self) -> Option<&ServerId> {
        match self {
            SourceName::Server(server) => Some(server),
            SourceName::Mirror(_) => None,
        }
    }
}

impl fmt::Display for SourceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            SourceName::Server(server) => server.as_str(),
            SourceName::Mirror(url) => url,
        })
    }
}

/// The label of `cohort_bytes_received_total{from="mirror|peer"}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SourceKind {
    /// Bytes come through the zone's downlink.
    Mirror,
    Peer,
}

impl fmt::Display for SourceKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            SourceKind::Mirror => "mirror",
            SourceKind::Peer => "peer",
        })
    }
}

/// How a request ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Bytes of the body received.
    pub bytes: u64,
    /// From the response head to the last byte, in microseconds.
    pub elapsed_us: u64,
    /// Units that were correct and new.
    pub units: u32,
    /// Why it got less than requested, with the full error for people.
    pub failure: Option<(Failure, String)>,
}

/// One source's state in one fetch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct SourceReport {
    pub source: SourceName,
    pub requests: usize,
    /// Measured rate in bytes per second; 0 while unknown.
    pub rate: u64,
    /// Failures since its last good unit.
    pub failures: u32,
    /// Number of units with wrong bytes that it sent.
    pub refused_units: u32,
    /// Its last failure, for people.
    pub last_error: Option<String>,
    pub offences: Offences,
}
