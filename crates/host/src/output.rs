//! The output of programs, bounded and made safe to print.

use std::collections::VecDeque;

use cohort_core::report::REPORT_TEXT_BYTES_MAX;

/// The last bytes of a stream.
#[derive(Debug)]
pub(crate) struct Tail {
    bytes: VecDeque<u8>,
    bytes_max: usize,
}

impl Tail {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Tail { bytes: VecDeque::new(), bytes_max }
    }

    pub(crate) fn push(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(self.bytes_max)..];
        let over = (self.bytes.len() + bytes.len()).saturating_sub(self.bytes_max);
        self.bytes.drain(..over);
        self.bytes.extend(bytes);
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
    }

    pub(crate) fn bytes(&mut self) -> &[u8] {
        self.bytes.make_contiguous()
    }

    /// The tail as text for a report.
    pub(crate) fn text(&mut self) -> String {
        last_text(&String::from_utf8_lossy(self.bytes.make_contiguous()))
    }
}

/// Removes control characters: a program must not control the terminal of its output's reader.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{b7}' } else { c })
        .collect()
}

/// The end of a text, printable and short enough for a report.
pub(crate) fn last_text(text: &str) -> String {
    let text = printable(text);
    let from = text.len().saturating_sub(REPORT_TEXT_BYTES_MAX);
    text[text.ceil_char_boundary(from)..].to_owned()
}

/// The start of a text, printable and short enough for a report.
pub(crate) fn first_text(text: &str) -> String {
    let mut text = printable(text);
    text.truncate(text.floor_char_boundary(REPORT_TEXT_BYTES_MAX));
    text
}

/// Longest line of output in a reason, in characters.
const LINE_CHARS_MAX: usize = 200;

/// A reason with what the program said last, which often explains it.
pub(crate) fn with_last_line(reason: &str, output: &str) -> String {
    match output.lines().map(str::trim).rfind(|line| !line.is_empty()) {
        Some(line) => {
            let line: String = line.chars().take(LINE_CHARS_MAX).collect();
            first_text(&format!("{reason}: {line}"))
        }
        None => first_text(reason),
    }
}

#[cfg(test)]
#[path = "output_test.rs"]
mod output_test;
