//! House rules that a machine can check, and figures about the code.

mod arrows;
mod figures;
mod functions;
mod imports;
mod rules;
mod text;
mod tree;

use std::fmt;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::Args;

use crate::build::root;
use tree::Tree;

#[derive(Debug, Args)]
pub(crate) struct TidyArgs {
    /// Redraw the crates in ARCHITECTURE.md before checking
    #[arg(long)]
    fix: bool,
    /// Print lines, files, functions, arrows and import circles instead of checking
    #[arg(long, conflicts_with = "fix")]
    figures: bool,
    /// Root of another checkout [default: the one this program was built from]
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
}

/// A violation of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Complaint {
    pub path: String,
    /// The line, counted from 1.
    pub line: usize,
    /// The fact, and how to fix it.
    pub what: String,
}

pub(crate) fn complaint(path: String, line: usize, what: String) -> Complaint {
    Complaint { path, line, what }
}

impl fmt::Display for Complaint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.what)
    }
}

/// Checks, or prints figures. False if a check failed.
pub(crate) fn run(args: &TidyArgs) -> Result<bool> {
    let root = args.root.clone().unwrap_or_else(root);
    let mut tree = Tree::read(&root)?;
    if args.figures {
        print!("{}", figures::figures(&tree.files)?);
        return Ok(true);
    }
    if args.fix {
        let page = root.join(arrows::PAGE);
        let text = std::fs::read_to_string(&page).with_context(|| arrows::PAGE)?;
        let drawn = arrows::drawn(&text, &arrows::actual(&tree.files)?);
        std::fs::write(&page, drawn.context("ARCHITECTURE.md has no place for the drawing")?)?;
        tree = Tree::read(&root)?;
    }
    let (passed, failed) = check(&tree)?;
    println!("{passed} checks passed, {failed} failed");
    Ok(failed == 0)
}

/// Checks this repository; returns how many checks passed and failed.
pub(crate) fn check_all() -> Result<(u32, u32)> {
    check(&Tree::read(&root())?)
}

/// How many attacks the threat model names, each with its test.
pub(crate) fn attacks() -> Result<usize> {
    text::attacks(&Tree::read(&root())?.files)
}

/// Runs every check and prints what it found.
fn check(tree: &Tree) -> Result<(u32, u32)> {
    let files = tree.files.as_slice();
    let refused = text::refused_phrases(files)?;
    let mut checks: Vec<(&str, Vec<Complaint>)> = vec![
        ("arrows", arrows::check(files, arrows::ALLOWED)?),
        ("drawing", arrows::check_page(files)?),
        ("columns", text::columns(files)),
        ("file length", text::file_lines(files)),
        ("phrases", text::phrases(files, &refused)?),
        ("crate-docs", text::crate_docs(files)),
        ("paths in documents", text::dead_paths(tree)?),
        ("tests in documents", text::dead_tests(files)?),
        ("events", text::events(files)?),
    ];
    for ban in rules::BANS {
        checks.push((ban.name, rules::check(ban, files)?));
    }
    let (mut passed, mut failed) = (0, 0);
    for (name, complaints) in checks {
        for complaint in &complaints {
            println!("{complaint} [{name}]");
        }
        if complaints.is_empty() { passed += 1 } else { failed += 1 }
    }
    Ok((passed, failed))
}
