//! What the repository's response means for a group.

use cohort_core::Offer;
use cohort_core::release::Release;

/// Why the repository provided no release, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    Unreachable {
        reason: String,
    },
    /// The channel has no target, as far as known here.
    NotFound {
        reason: String,
    },
    /// A signature, a version or a digest is wrong.
    Untrusted {
        reason: String,
    },
}

/// The offer of a channel, given the release found in the local metadata, and whether that metadata
/// could be refreshed before.
#[must_use]
pub fn judge(found: Result<Release, Refusal>, refreshed: &Result<(), Refusal>) -> Offer {
    match (found, refreshed) {
        (Ok(release), _) => Offer::Release(release),
        // That the mirrors serve something untrusted is more informative than that nothing is
        // known.
        (Err(_), Err(Refusal::Untrusted { reason } | Refusal::NotFound { reason })) => {
            Offer::Refused { reason: reason.clone() }
        }
        (Err(Refusal::Untrusted { reason }), _) => Offer::Refused { reason },
        (Err(Refusal::Unreachable { reason } | Refusal::NotFound { reason }), _) => {
            Offer::Unknown { reason }
        }
    }
}
