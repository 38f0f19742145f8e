//! An error and its causes, as one line for people.

use std::error::Error;
use std::iter::successors;

/// The error and its causes, outermost first, joined by `: `.
///
/// Many libraries repeat the cause in the outer message; a cause already included is left out. Use
/// it where an error is logged, shown or put into a response. An error that is returned keeps its
/// cause as `#[source]` instead.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut line = String::new();
    for cause in causes(error) {
        let text = one_line(cause.to_string());
        if !line.contains(&text) {
            let separator = if line.is_empty() { "" } else { ": " };
            line.extend([separator, &text]);
        }
    }
    line
}

/// Without the source text that parsers draw below their message: a line number says as much.
fn one_line(text: String) -> String {
    if !text.contains('\n') {
        return text;
    }
    let drawn = |line: &&str| {
        let rest = line.trim_start_matches(|c: char| c.is_ascii_digit()).trim_start();
        !line.is_empty() && !rest.starts_with('|')
    };
    text.lines().map(str::trim).filter(drawn).collect::<Vec<_>>().join(": ")
}

/// The error itself, then each cause. Use `downcast_ref` to find one of a given type.
pub fn causes<'a>(
    error: &'a (dyn Error + 'static),
) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |error| (*error).source())
}

#[cfg(test)]
#[path = "chain_test.rs"]
mod chain_test;
