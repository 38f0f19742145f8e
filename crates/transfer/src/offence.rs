//! How a source can fail, and which failures it is blamed for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Why a source sent less than was requested.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It asked us to back off.
    Busy {
        retry_after_ms: u64,
    },
    /// It does not have the bytes, perhaps not yet.
    Absent,
    NoRanges,
    /// No connection, a broken one, or a status that is not a valid response.
    Unreachable,
    /// It broke the protocol, or stalled.
    Misbehaved(Offence),
    /// It is slow: what arrived is kept, and the rest is requested again, from any source. Blamed,
    /// but no reason to pause.
    Slow,
}

impl Failure {
    /// What the source is blamed for. One that is unreachable, busy or lacks the bytes did nothing
    /// wrong.
    #[must_use]
    pub fn offence(self) -> Option<Offence> {
        match self {
            Failure::Misbehaved(offence) => Some(offence),
            Failure::Slow => Some(Offence::Slow),
            Failure::Busy { .. } | Failure::Absent | Failure::NoRanges | Failure::Unreachable => {
                None
            }
        }
    }
}

/// What a source is blamed for: in `cohort why`, in the group's status and in metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Offence {
    /// Bytes that do not match the unit hashes, or hashes that do not match the root.
    WrongBytes,
    /// A response that is too short, too long, or for another range.
    WrongLength,
    /// Nothing at all within the time allowed.
    Silent,
    /// Bytes too slow to be useful, such as one per second.
    Slow,
}

/// How often a source committed each offence, in one fetch.
pub type Offences = BTreeMap<Offence, u32>;

impl Offence {
    /// A metric's label: `wrong-bytes`, `wrong-length`, `silent`, `slow`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Offence::WrongBytes => "wrong-bytes",
            Offence::WrongLength => "wrong-length",
            Offence::Silent => "silent",
            Offence::Slow => "slow",
        }
    }
}
