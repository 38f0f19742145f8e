//! Sizes, rates, durations and lists of names, as short as possible.

pub use cohort_base::figures::{bits, brief, bytes};

/// A list of names, and the number of those not shown.
#[must_use]
pub fn names<N: ToString>(shown: impl IntoIterator<Item = N>, all: u64) -> String {
    let shown: Vec<String> = shown.into_iter().map(|name| name.to_string()).collect();
    match (shown.as_slice(), all.saturating_sub(shown.len() as u64)) {
        ([], 0) => "none".to_owned(),
        (_, 0) => shown.join(", "),
        (_, more) => format!("{} and {more} more", shown.join(", ")),
    }
}

#[cfg(test)]
#[path = "figures_test.rs"]
mod figures_test;
