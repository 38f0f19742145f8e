//! Writing to people and programs: text or JSON, colour only on a terminal.

use std::env;
use std::io::{self, IsTerminal as _, Write as _};

use clap::ValueEnum;
use comfy_table::{Cell, Color, ContentArrangement, Table, presets};
use serde::Serialize;

use crate::failure::Failure;

/// For whom a command writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Output {
    /// A table for people.
    #[default]
    Text,
    /// JSON for programs.
    Json,
}

/// How text may look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Look {
    /// Whether colours are welcome.
    pub(crate) color: bool,
    /// Columns of the terminal; none: as wide as it gets.
    pub(crate) width: Option<u16>,
}

impl Look {
    /// Without colour, as wide as it gets: for files and tests.
    pub(crate) const PLAIN: Look = Look { color: false, width: None };

    /// What standard output can show.
    pub(crate) fn of_stdout() -> Look {
        if !io::stdout().is_terminal() {
            return Look::PLAIN;
        }
        Look { color: color_welcome(), width: Table::new().width() }
    }
}

/// <https://no-color.org>: any value but an empty one.
fn color_welcome() -> bool {
    env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// What a cell says about health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it should be.
    Good,
    /// On its way, or waiting.
    Busy,
    /// Wrong.
    Bad,
}

/// A table with these headings.
pub(crate) fn table(look: Look, headings: &[&str]) -> Table {
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

/// A cell in no particular tone.
pub(crate) fn cell(text: impl ToString) -> Cell {
    Cell::new(text)
}

/// A cell in a tone.
pub(crate) fn toned(look: Look, tone: Tone, text: impl ToString) -> Cell {
    let cell = Cell::new(text);
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
pub(crate) fn render(table: &Table) -> String {
    let mut text = String::new();
    for line in table.lines() {
        let line = line.strip_prefix(' ').unwrap_or(&line);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Writes to standard output. A reader that went away (`| head`) ends the program quietly.
pub(crate) fn say(text: &str) {
    let mut out = io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if written.is_err() {
        std::process::exit(0);
    }
}

/// Writes one JSON value, indented.
pub(crate) fn say_json(value: &impl Serialize) {
    let text = serde_json::to_string_pretty(value).expect("answers have text keys only");
    say(&format!("{text}\n"));
}

/// Writes one JSON value in one line.
pub(crate) fn say_json_line(value: &impl Serialize) {
    let text = serde_json::to_string(value).expect("answers have text keys only");
    say(&format!("{text}\n"));
}

/// Says something beside the answer, to standard error.
pub(crate) fn note(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}

/// Shows why a command failed.
pub(crate) fn show_failure(failure: &Failure, output: Output) {
    let text = match output {
        Output::Json => serde_json::to_string(failure).expect("failures are texts"),
        Output::Text => failure_text(failure, io::stderr().is_terminal() && color_welcome()),
    };
    note(text.trim_end());
}

/// A failure for people.
fn failure_text(failure: &Failure, color: bool) -> String {
    let (red, blue, plain) = if color { ("\x1b[31m", "\x1b[36m", "\x1b[0m") } else { ("", "", "") };
    let mut text = format!("{red}error:{plain} {}\n", failure.error);
    for hint in &failure.hints {
        text.push_str(&format!("{blue}hint:{plain} {hint}\n"));
    }
    text
}

#[cfg(test)]
mod output_test {
    use super::{Failure, failure_text};

    #[test]
    fn a_failure_says_what_is_wrong_and_what_to_type() {
        let failure = Failure::new("held", "web is held").hint("cohort why web");
        assert_eq!(failure_text(&failure, false), "error: web is held\nhint: cohort why web\n");
        assert_eq!(
            serde_json::to_string(&failure).expect("texts"),
            r#"{"kind":"held","error":"web is held","hints":["cohort why web"]}"#
        );
    }
}
