//! Lines, words, and references in documents.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result, ensure};
use regex::Regex;

use super::tree::{File, Tree};
use super::{Complaint, complaint};

/// Columns of code and prose.
const COLUMNS: usize = 100;

/// Most lines of a file: a longer one has a second idea.
const FILE_LINES: usize = 600;

const VOICE: &str = "docs/voice.md";

/// The parts of each crate's `//!`, in this order.
const PARTS: [&str; 3] =
    ["**What it is.**", "**What it must never know.**", "**Where to start reading.**"];

/// Lines that are too long. Rows of tables, and program output (```` ```console ````), are exempt.
pub(crate) fn columns(files: &[File]) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for file in files.iter().filter(|file| file.is_rust() || file.is_prose()) {
        let mut printed = false;
        for (number, line) in file.lines() {
            if file.is_prose() && line.starts_with("```") {
                printed = line == "```console";
            }
            let kept = file.is_prose() && (line.starts_with('|') || printed);
            let columns = line.chars().count();
            if columns > COLUMNS && !kept {
                let what = format!("{columns} columns, at most {COLUMNS}");
                complaints.push(complaint(file.path.clone(), number, what));
            }
        }
    }
    complaints
}

pub(crate) fn file_lines(files: &[File]) -> Vec<Complaint> {
    let long = |file: &File| {
        let lines = file.text.lines().count();
        let what = format!("{lines} lines, at most {FILE_LINES}: what is its second idea?");
        (lines > FILE_LINES).then(|| complaint(file.path.clone(), FILE_LINES, what))
    };
    files.iter().filter(|file| file.is_rust()).filter_map(long).collect()
}

/// The phrases that `docs/voice.md` refuses: one per line, in its last block.
pub(crate) fn refused_phrases(files: &[File]) -> Result<Vec<String>> {
    let voice = files.iter().find(|file| file.path == VOICE).context(VOICE)?;
    let (_, rest) = voice.text.split_once("## Refused phrases").context("no refused phrases")?;
    let block = rest.split("```").nth(1).context("no block of phrases")?;
    let phrases: Vec<String> = block
        .lines()
        .skip(1)
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect();
    ensure!(!phrases.is_empty(), "{VOICE} refuses no phrase");
    Ok(phrases)
}

/// Occurrences of refused phrases in documents and Rust.
pub(crate) fn phrases(files: &[File], refused: &[String]) -> Result<Vec<Complaint>> {
    let any: Vec<String> =
        refused.iter().map(|phrase| regex::escape(phrase).replace(' ', r"[\s/!]+")).collect();
    let pattern = Regex::new(&format!(r"(?i)\b({})\b", any.join("|")))?;
    let mut complaints = Vec::new();
    let spoken = |file: &&File| {
        (file.is_rust() || file.is_prose())
            && file.path != VOICE
            && !file.path.ends_with("tidy/text_test.rs")
    };
    for file in files.iter().filter(spoken) {
        let text = if file.is_rust() { spoken_part(&file.text) } else { file.text.clone() };
        for found in pattern.find_iter(&text) {
            let line = text[..found.start()].matches('\n').count() + 1;
            let what = format!("\"{}\": see {VOICE}", found.as_str().replace('\n', " "));
            complaints.push(complaint(file.path.clone(), line, what));
        }
    }
    Ok(complaints)
}

/// Rust without pure code lines. A line within a long string has no quotes, but does not end like
/// code either.
fn spoken_part(text: &str) -> String {
    let code = |line: &&str| {
        let ends = line.trim_end().ends_with(['{', '}', '(', ')', ';', ',']);
        ends && !line.contains("//") && !line.contains('"')
    };
    text.lines()
        .map(|line| if code(&line) { "\n".to_owned() } else { format!("{line}\n") })
        .collect()
}

/// Crates whose `//!` lacks one of its three parts.
pub(crate) fn crate_docs(files: &[File]) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let root = |file: &&File| {
        let crate_of = file.home().filter(|home| !home.starts_with("example-"));
        let root = file.path.ends_with("/src/lib.rs") || file.path.ends_with("/src/main.rs");
        crate_of.is_some() && root && file.path.matches('/').count() <= 3
    };
    let roots: Vec<&File> = files.iter().filter(root).collect();
    for file in &roots {
        // A program with a library next to it is only a few lines.
        let beside = file.path.replace("main.rs", "lib.rs");
        if beside != file.path && roots.iter().any(|other| other.path == beside) {
            continue;
        }
        let doc: Vec<&str> = file.text.lines().take_while(|line| line.starts_with("//!")).collect();
        let doc = doc.join("\n");
        let at: Vec<Option<usize>> = PARTS.iter().map(|part| doc.find(part)).collect();
        for (part, _) in PARTS.iter().zip(&at).filter(|(_, at)| at.is_none()) {
            complaints.push(complaint(file.path.clone(), 1, format!("`//!` lacks {part}")));
        }
        if at.iter().all(Option::is_some) && !at.is_sorted() {
            let what = format!("`//!` has its parts in another order than {PARTS:?}");
            complaints.push(complaint(file.path.clone(), 1, what));
        }
    }
    complaints
}

/// Paths in documents that do not exist.
pub(crate) fn dead_paths(tree: &Tree) -> Result<Vec<Complaint>> {
    let named = Regex::new(
        r"`((?:crates|docs|xtask|scenarios|examples|\.ci|\.config)/[\w./*<>-]*)`|\]\(([^)#:]+)[)#]",
    )?;
    let mut complaints = Vec::new();
    for file in tree.files.iter().filter(|file| file.is_prose()) {
        let folder = file.path.rsplit_once('/').map_or("", |(folder, _)| folder);
        for found in named.captures_iter(&file.text) {
            let whole = found.get(0).map_or(0, |whole| whole.start());
            let path = match (found.get(1), found.get(2)) {
                (Some(path), _) => path.as_str().to_owned(),
                (None, Some(link)) => below(folder, link.as_str()),
                (None, None) => continue,
            };
            // `crates/x/src/*.rs` and `scenarios/<name>.txt` match several files.
            let path = path.split(['*', '<']).next().unwrap_or_default().trim_end_matches('/');
            let there = tree.paths.range(path.to_owned()..).next();
            if !there.is_some_and(|there| there.starts_with(path)) {
                let line = file.text[..whole].matches('\n').count() + 1;
                let what = format!("`{path}` does not exist");
                complaints.push(complaint(file.path.clone(), line, what));
            }
        }
    }
    Ok(complaints)
}

/// The tests that a document names, such as `*a_name_that_starts_like…*`, with their positions.
fn named_tests(text: &str) -> Result<Vec<(usize, String)>> {
    let named = Regex::new(r"\*([a-z0-9…]+(?:_\s*[a-z0-9…]+)+)\*")?;
    let names = named.captures_iter(text).filter_map(|found| found.get(1));
    Ok(names.map(|name| (name.start(), name.as_str().to_owned())).collect())
}

/// Tests in documents that do not exist: what a document promises, somebody has to have tried.
pub(crate) fn dead_tests(files: &[File]) -> Result<Vec<Complaint>> {
    let known = tests(files)?;
    let mut complaints = Vec::new();
    for file in files.iter().filter(|file| file.is_prose()) {
        for (at, name) in named_tests(&file.text)? {
            if named_by(&name, &known)?.is_empty() {
                let line = file.text[..at].matches('\n').count() + 1;
                complaints.push(complaint(file.path.clone(), line, format!("no test is `{name}`")));
            }
        }
    }
    Ok(complaints)
}

/// The names of all tests.
fn tests(files: &[File]) -> Result<Vec<&str>> {
    let test =
        r"#\[(?:tokio::)?test(?:\([^\]]*\))?\]\s*(?:#\[[^\]]*\]\s*)*(?:async )?fn ([a-z0-9_]+)";
    let test = Regex::new(test)?;
    let rust = files.iter().filter(|file| file.is_rust());
    let found = rust.flat_map(|file| test.captures_iter(&file.text).collect::<Vec<_>>());
    Ok(found.filter_map(|found| Some(found.get(1)?.as_str())).collect())
}

/// The tests that a document means.
fn named_by<'a>(name: &str, tests: &[&'a str]) -> Result<Vec<&'a str>> {
    let like = Regex::new(&format!("^{}$", name.replace('…', ".*")))?;
    Ok(tests.iter().copied().filter(|test| like.is_match(test)).collect())
}

/// How many tests the threat model names, each an attack that has to fail.
pub(crate) fn attacks(files: &[File]) -> Result<usize> {
    let Some(page) = files.iter().find(|file| file.path == "docs/security.md") else {
        return Ok(0);
    };
    let known = tests(files)?;
    let mut named = BTreeSet::new();
    for (_, name) in named_tests(&page.text)? {
        named.extend(named_by(&name, &known)?);
    }
    Ok(named.len())
}

/// A link's target, relative to the root.
fn below(folder: &str, link: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').filter(|part| !part.is_empty()).collect();
    for part in link.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// Events that nothing logs. One without a name does not compile.
pub(crate) fn events(files: &[File]) -> Result<Vec<Complaint>> {
    const HOME: &str = "crates/base/src/events.rs";
    let Some(home) = files.iter().find(|file| file.path == HOME) else { return Ok(Vec::new()) };
    let named = Regex::new(r"(?m)^pub const (\w+): &str = ")?;
    let used = Regex::new(r"\bevents::([A-Z_]+)\b")?;
    let logs = |file: &&File| {
        let programs = ["crates/trial/", "crates/simulate/", "xtask/", HOME];
        file.is_production() && !programs.iter().any(|path| file.path.starts_with(path))
    };
    let logged: BTreeSet<&str> = files
        .iter()
        .filter(logs)
        .flat_map(|file| used.captures_iter(&file.text))
        .filter_map(|found| Some(found.get(1)?.as_str()))
        .collect();
    let mut complaints = Vec::new();
    for found in named.captures_iter(&home.text) {
        let Some(name) = found.get(1).filter(|name| !logged.contains(name.as_str())) else {
            continue;
        };
        let line = home.text[..name.start()].matches('\n').count() + 1;
        let what = format!("nothing logs the event `{}`", name.as_str());
        complaints.push(complaint(HOME.to_owned(), line, what));
    }
    Ok(complaints)
}

#[cfg(test)]
#[path = "text_test.rs"]
mod text_test;
