//! What the repository's answer means for a group.

use cohort_core::Offer;
use cohort_core::release::Release;

/// Why the repository gave no release, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No mirror answered.
    Unreachable { reason: String },
    /// The channel points to nothing, as far as is known here.
    NotFound { reason: String },
    /// A signature, a version or a digest is not what it must be.
    Untrusted { reason: String },
}

/// The offer of a channel, given what was found in the metadata held here, and whether that
/// metadata could be refreshed before.
#[must_use]
pub fn judge(found: Result<Release, Refusal>, refreshed: &Result<(), Refusal>) -> Offer {
    match (found, refreshed) {
        (Ok(release), _) => Offer::Release(release),
        // That the mirrors serve something untrusted says more than that nothing is known.
        (Err(_), Err(Refusal::Untrusted { reason } | Refusal::NotFound { reason })) => {
            Offer::Refused { reason: reason.clone() }
        }
        (Err(Refusal::Untrusted { reason }), _) => Offer::Refused { reason },
        (Err(Refusal::Unreachable { reason } | Refusal::NotFound { reason }), _) => {
            Offer::Unknown { reason }
        }
    }
}
