//! Sizes, rates, durations and lists of names, as short as they can be read.

pub use cohort_base::figures::{bits, brief, bytes};

/// Names in a row, and how many more there are than are shown.
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
mod figures_test {
    use super::names;

    #[test]
    fn names_beyond_those_shown_are_counted() {
        assert_eq!(names(["a", "b"], 5), "a, b and 3 more");
        assert_eq!(names(["a", "b"], 2), "a, b");
        assert_eq!(names::<&str>([], 0), "none");
    }
}
