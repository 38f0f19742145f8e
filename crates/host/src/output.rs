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

    pub(crate) fn bytes(&mut self) -> &[u8] {
        self.bytes.make_contiguous()
    }

    /// As text for a report.
    pub(crate) fn text(&mut self) -> String {
        last_text(&String::from_utf8_lossy(self.bytes.make_contiguous()))
    }
}

/// A program must not control the terminal of the person who reads its output.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() && c != '\n' && c != '\t' { '\u{b7}' } else { c })
        .collect()
}

/// The end of a text, printable, as long as a report allows.
pub(crate) fn last_text(text: &str) -> String {
    let text = printable(text);
    let from = text.len().saturating_sub(REPORT_TEXT_BYTES_MAX);
    text[text.ceil_char_boundary(from)..].to_owned()
}

/// The beginning of a text, printable, as long as a report allows.
pub(crate) fn first_text(text: &str) -> String {
    let mut text = printable(text);
    text.truncate(text.floor_char_boundary(REPORT_TEXT_BYTES_MAX));
    text
}

#[cfg(test)]
#[path = "output_test.rs"]
mod output_test;
