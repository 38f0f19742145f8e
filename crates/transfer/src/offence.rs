//! How a source can fail, and which failures it is blamed for.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Why a source gave less than it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It asked to be left alone.
    Busy {
        retry_after_ms: u64,
    },
    /// It does not have the bytes, perhaps not yet.
    Absent,
    NoRanges,
    /// No connection, a broken one, or a status that is no answer.
    Unreachable,
    /// It broke the protocol, or stalled.
    Misbehaved(Offence),
    /// It is slow: what came is kept and the rest is asked for again, of anyone. Blamed, yet no
    /// reason to pause.
    Slow,
}

impl Failure {
    /// What the source is blamed for. One that is away, busy or lacks the bytes did nothing wrong.
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
    /// An answer that is too short, too long, or for another range.
    WrongLength,
    /// Nothing at all within the time allowed.
    Silent,
    /// Bytes too slow to be of use, such as one a second.
    Slow,
}

/// How often a source did what, in one fetch.
pub type Offences = BTreeMap<Offence, u32>;

impl Offence {
    /// As a label of a metric: `wrong-bytes`, `wrong-length`, `silent`, `slow`.
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
