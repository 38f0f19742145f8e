use std::collections::BTreeSet;

use super::{
    attacks, columns, crate_docs, dead_paths, dead_tests, events, file_lines, phrases,
    refused_phrases,
};
use crate::tidy::Complaint;
use crate::tidy::tree::{File, Tree};

fn lines(complaints: &[Complaint]) -> Vec<usize> {
    complaints.iter().map(|complaint| complaint.line).collect()
}

#[test]
fn long_lines_are_found_but_in_tables_and_printed_output() {
    let (long, fits) = ("ä".repeat(101), "ä".repeat(100));
    let prose = format!("{long}\n| {long} |\n```console\n{long}\n```\n{long}\n{fits}\n");
    assert_eq!(lines(&columns(&[File::of("docs/a.md", &prose)])), [1, 6]);
    let rust = format!("// {fits}\n// short\n| {long}\n");
    assert_eq!(lines(&columns(&[File::of("crates/a/src/b.rs", &rust)])), [1, 3]);
    assert_eq!(columns(&[File::of("deny.toml", &long)]), []);
}

#[test]
fn long_files_are_found() {
    assert_eq!(file_lines(&[File::of("crates/a/src/b.rs", &"\n".repeat(600))]), []);
    assert_eq!(file_lines(&[File::of("crates/a/src/b.rs", &"\n".repeat(601))]).len(), 1);
}

#[test]
fn refused_phrases_are_read_from_the_page_and_found_across_lines() {
    let voice = "# Voice\n```sh\nx\n```\n## Refused phrases\n\n```text\nanew\nin vain\n```\n";
    let refused = refused_phrases(&[File::of("docs/voice.md", voice)]).expect("a block");
    assert_eq!(refused, ["anew", "in vain"]);
    let files = [
        File::of("docs/voice.md", "anew"),
        File::of("README.md", "It begins\nAnew, in\nvain."),
        File::of("crates/a/src/b.rs", "/// Tried in\n/// vain.\nfn renewal() {}"),
        File::of("Cargo.toml", "# anew"),
        File::of("crates/a/src/c.rs", "for try_ in vain {\n    say(\"anew\");\n}\n"),
    ];
    assert_eq!(lines(&phrases(&files, &refused).expect("a pattern")), [2, 2, 1, 2]);
}

#[test]
fn a_crate_says_what_it_is_what_it_must_not_know_and_where_to_start() {
    let good = "//! A.\n//! **What it is.** B\n//! **What it must never know.** C\n\
                //! **Where to start reading.** D\n";
    let file = |path: &str, text: &str| File::of(path, text);
    assert_eq!(crate_docs(&[file("crates/a/src/lib.rs", good)]), []);
    let lacking = good.replace("**Where to start reading.**", "Start");
    assert_eq!(crate_docs(&[file("crates/a/src/lib.rs", &lacking)]).len(), 1);
    let swapped = good.replace("What it is", "Where to start reading");
    assert_eq!(crate_docs(&[file("xtask/src/main.rs", &swapped)]).len(), 1);
    let pair = [file("crates/a/src/lib.rs", good), file("crates/a/src/main.rs", "//! Runs it.")];
    assert_eq!(crate_docs(&pair), []);
    assert_eq!(crate_docs(&[file("crates/a/src/b/lib.rs", "")]), [], "no root of a crate");
}

#[test]
fn documents_name_what_exists() {
    let text = "`crates/a/src/b.rs` `crates/a` `crates/a/src/*.rs` `scenarios/<name>.txt`\n\
                [c](design/c.md) [web](https://example.org/x) [up](../README.md#top)\n\
                `crates/gone/src/b.rs`\n[gone](gone.md)\n";
    let files = vec![File::of("docs/a.md", text)];
    let paths = ["crates/a/src/b.rs", "scenarios/x.txt", "docs/design/c.md", "README.md"];
    let paths: BTreeSet<String> = paths.map(str::to_owned).into();
    assert_eq!(lines(&dead_paths(&Tree { files, paths }).expect("a pattern")), [3, 4]);
}

#[test]
fn a_test_that_a_document_names_exists() {
    let page = "one *a_test_of_that_name*, and *a_test_of…*,\n*…that_name* *not this* `no_test`\n\
                | *a_lost_test…* |\n";
    let rust = "#[test]\nfn a_test_of_that_name() {}\n";
    let files = [File::of("docs/security.md", page), File::of("crates/a/src/b_test.rs", rust)];
    assert_eq!(lines(&dead_tests(&files).expect("a pattern")), [3]);
    assert_eq!(attacks(&files).expect("a pattern"), 1);
}

#[test]
fn an_event_that_nothing_logs_is_found() {
    let home = "pub const PHASE: &str = \"phase\";\npub const GONE: &str = \"gone\";\n";
    let files = [
        File::of("crates/base/src/events.rs", home),
        File::of("crates/agent/src/a.rs", "info!(event = events::PHASE)"),
        File::of("crates/trial/src/a.rs", "line.is(events::GONE)"),
    ];
    assert_eq!(lines(&events(&files).expect("a pattern")), [2]);
}
