//! Tables for terminals and files: aligned columns, with colour only where it is wanted.

use cohort_base::text;
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};

/// What the output can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    pub color: bool,
    /// Columns of the terminal; `None`: no limit.
    pub width: Option<u16>,
}

impl Look {
    /// No colour, no limit: for files, pipes and tests.
    pub const PLAIN: Look = Look { color: false, width: None };
}

/// What a cell says about health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tone {
    Good,
    /// In progress, or waiting.
    Busy,
    Bad,
}

/// A table with these headings.
#[must_use]
pub fn table(look: Look, headings: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_header(headings.iter().map(cell));
    if look.color {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    match look.width {
        Some(width) => {
            table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
        }
        None => {
            table.set_content_arrangement(ContentArrangement::Disabled);
        }
    }
    table
}

/// A cell without a tone.
#[must_use]
#[expect(clippy::needless_pass_by_value, reason = "numbers and texts alike")]
pub fn cell(text: impl ToString) -> Cell {
    Cell::new(text::line(&text.to_string()))
}

/// A cell with a tone.
#[must_use]
pub fn toned(look: Look, tone: Tone, text: impl ToString) -> Cell {
    let cell = cell(text);
    if !look.color {
        return cell;
    }
    match tone {
        Tone::Good => cell.fg(Color::Green),
        Tone::Busy => cell.fg(Color::Yellow),
        Tone::Bad => cell.fg(Color::Red),
    }
}

/// A table as text: no trailing spaces, ends with a line break.
#[must_use]
pub fn render(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        let line = line.strip_prefix(' ').unwrap_or(&line);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
