//! An error and its causes, as one line for people.

use std::error::Error;
use std::iter::successors;

/// The error and its causes, outermost first, joined by `: `.
///
/// Many libraries repeat the cause in the outer message; a cause that has been said already is
/// left out. Use it where an error is logged, shown or put into an answer. An error that is passed
/// on keeps its cause as `#[source]` instead.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = String::new();
    for cause in causes(error) {
        let text = cause.to_string();
        if !line.contains(&text) {
            let separator = if line.is_empty() { "" } else { ": " };
            line.extend([separator, &text]);
        }
    }
    line
}

/// The error itself, then each cause. Find one of a given type with `downcast_ref`.
pub fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |error| (*error).source())
}

#[cfg(test)]
#[path = "chain_test.rs"]
mod chain_test;
