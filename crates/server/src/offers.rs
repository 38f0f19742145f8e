//! What the repository's response means for a group.

use cohort_core::Offer;
use cohort_core::refused::{Refused, WhyRefused};
use cohort_core::release::Release;

/// Whether the metadata is news enough: `age_ms` is for how long nothing newer was seen. Alarms
/// only: what is offered is still signed and fresh.
///
/// # Errors
/// [`WhyRefused::Frozen`] beyond `age_ms_max`.
pub fn judge_age(age_ms: u64, age_ms_max: u64) -> Result<(), Refused> {
    if age_ms <= age_ms_max {
        Ok(())
    } else {
        Err(WhyRefused::Frozen { for_s: age_ms / 1000 }.into())
    }
}

/// The offer of a channel, given the release found in the local metadata, and whether that metadata
/// could be refreshed before.
#[must_use]
pub fn judge(found: Result<Release, Refused>, refreshed: Result<(), &Refused>) -> Offer {
    let unknown = match found {
        Ok(release) => return Offer::Release(release),
        Err(unknown) => unknown,
    };
    // That the mirrors serve something untrusted, or that there are none, is more informative than
    // that nothing is known.
    let refused = refreshed.err().filter(|refused| !refused.why.is_unreachable()).cloned();
    let why = refused.unwrap_or(unknown);
    if why.why.is_unreachable() || why.why.is_absent() {
        Offer::Unknown(why)
    } else {
        Offer::Refused(why)
    }
}
