//! What a source may do that it is named for: in `cohort why`, in the group's status and in metrics.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::request::RequestError;

/// What a source did. A source that is away, busy or has not got the bytes yet did nothing wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Offence {
    /// Bytes that are not what the unit hashes say, or hashes that are not those of the root.
    WrongBytes,
    /// An answer that is shorter or longer than it has to be, or of another range.
    WrongLength,
    /// Nothing at all, within the time for it.
    Silent,
    /// Bytes that come too slowly to be of use, such as one a second.
    Slow,
}

/// How often a source did what, in one fetch.
pub type Offences = BTreeMap<Offence, u32>;

impl Offence {
    /// What the failure of a request says about its source, if anything.
    pub(crate) fn of(error: &RequestError) -> Option<Self> {
        match error {
            RequestError::Wrong(_) => Some(Offence::WrongBytes),
            RequestError::Length(_) => Some(Offence::WrongLength),
            // The first byte of something came, and not the rest.
            RequestError::Stalled {
                what: "whole unit" | "index of a unit" | "file of unit hashes",
                ..
            }
            | RequestError::Slow { .. } => Some(Offence::Slow),
            RequestError::Stalled { .. } => Some(Offence::Silent),
            RequestError::Busy { .. }
            | RequestError::Absent
            | RequestError::RangesIgnored
            | RequestError::Connection(_)
            | RequestError::Status(_)
            | RequestError::Disk(_) => None,
        }
    }

    /// As a label: `wrong-bytes`, `wrong-length`, `silent`, `slow`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Offence::WrongBytes => "wrong-bytes",
            Offence::WrongLength => "wrong-length",
            Offence::Silent => "silent",
            Offence::Slow => "slow",
        }
    }

    /// What it did, for people: after the name of the source.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Offence::WrongBytes => "sent wrong bytes",
            Offence::WrongLength => "sent answers of a wrong length",
            Offence::Silent => "said nothing when it was asked",
            Offence::Slow => "sent too slowly to be of use",
        }
    }
}
