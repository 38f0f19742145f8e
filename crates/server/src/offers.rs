//! What the repository's response means for a group.

use cohort_core::Offer;
use cohort_core::refused::Refused;
use cohort_core::release::Release;

/// The offer of a channel, given the release found in the local metadata, and whether that metadata
/// could be refreshed before.
#[must_use]
pub fn judge(found: Result<Release, Refused>, refreshed: Result<(), &Refused>) -> Offer {
    match (found, refreshed) {
        (Ok(release), _) => Offer::Release(release),
        // That the mirrors serve something untrusted is more informative than that nothing is
        // known.
        (Err(_), Err(refused)) if !refused.why.is_unreachable() => Offer::Refused(refused.clone()),
        (Err(refused), _) if refused.why.is_unreachable() || refused.why.is_absent() => {
            Offer::Unknown(refused)
        }
        (Err(refused), _) => Offer::Refused(refused),
    }
}
