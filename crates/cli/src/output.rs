//! Output: text or JSON to standard output, notes and failures to standard error. Nothing else
//! writes there: whatever is shown passes [`text::page`].

use std::env;
use std::io::{self, IsTerminal as _, Write as _};

use clap::ValueEnum;
use cohort_base::text;
use cohort_view::report::Origin;
use cohort_view::table::Look;
use comfy_table::Table;

use crate::answer::Answer;
use crate::failure::Failure;

/// The format of results and failures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Output {
    #[default]
    Text,
    /// JSON, as documented in `docs/operating.md`.
    Json,
    /// The names of what is listed, one per line.
    Name,
}

impl Output {
    /// Writes a result in this format; `text` ends with a line break.
    pub(crate) fn answer(self, answer: &Answer<'_>, text: impl FnOnce() -> String) {
        match self {
            Output::Json => {
                let json = serde_json::to_string_pretty(answer);
                print(&(json.expect("answers have string keys") + "\n"));
            }
            Output::Text => print(&text()),
            Output::Name => match answer.names() {
                Some(names) => names.iter().for_each(|name| print(&format!("{name}\n"))),
                None => print(&text()),
            },
        }
    }
}

impl Output {
    /// Writes one of many results, as it comes: as JSON, an object in one line.
    pub(crate) fn line(self, answer: &Answer<'_>, text: impl FnOnce() -> String) {
        match self {
            Output::Json => print_json_line(answer),
            Output::Text | Output::Name => print(&text()),
        }
    }
}

/// What standard output can show.
pub(crate) fn look() -> Look {
    if !io::stdout().is_terminal() {
        return Look::PLAIN;
    }
    Look { color: color_welcome(), width: Table::new().width() }
}

/// Whether <https://no-color.org> permits colour: the variable is absent or empty.
fn color_welcome() -> bool {
    env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Writes to standard output. If the reader has closed it (`| head`), the process exits quietly.
pub(crate) fn print(text: &str) {
    let mut out = io::stdout().lock();
    let text = text::page(text, out.is_terminal());
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    if written.is_err() {
        std::process::exit(0);
    }
}

/// Writes a result as JSON in one line.
pub(crate) fn print_json_line(answer: &Answer<'_>) {
    let text = serde_json::to_string(answer).expect("answers have string keys");
    print(&(text + "\n"));
}

/// Writes to standard error.
pub(crate) fn note(text: &str) {
    let mut error = io::stderr().lock();
    let _ = writeln!(error, "{}", text::page(text, error.is_terminal()));
}

/// Warns if the list of groups is outdated.
pub(crate) fn warn(origin: &Origin) {
    if let Some(warning) = origin.warning() {
        note(&warning);
    }
}

pub(crate) fn show_failure(failure: &Failure, output: Output) {
    let text = match output {
        Output::Json => {
            serde_json::to_string(&Answer::Failure(failure)).expect("failures are strings")
        }
        Output::Text | Output::Name => {
            failure_text(failure, io::stderr().is_terminal() && color_welcome())
        }
    };
    note(text.trim_end());
}

fn failure_text(failure: &Failure, color: bool) -> String {
    let (red, blue, plain) = if color { ("\x1b[31m", "\x1b[36m", "\x1b[0m") } else { ("", "", "") };
    let mut text = format!("{red}error:{plain} {}\n", text::line(&failure.error));
    for hint in &failure.hints {
        text.push_str(&format!("{blue}hint:{plain} {}\n", text::line(&hint.to_string())));
    }
    text
}

#[cfg(test)]
#[path = "output_test.rs"]
mod output_test;
