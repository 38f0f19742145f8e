//! Which crate may depend on which: the table of what is allowed, and the drawing of what exists.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};

use super::tree::File;
use super::{Complaint, complaint};

/// Crates of this workspace, and the ones each depends on. Dev-dependencies are left out: a test
/// may use more than the code under test.
pub(crate) type Arrows = BTreeMap<String, BTreeSet<String>>;

/// The exact arrows: a new dependency is a decision, and an unused permission a trap.
pub(crate) const ALLOWED: &[(&str, &str)] = &[
    ("agent", "artifact base consensus core distribute host identity registry server store wire"),
    ("artifact", "base core"),
    ("base", ""),
    ("cli", "agent artifact base core host hub identity mirror registry view wire"),
    ("consensus", "base store"),
    ("core", ""),
    ("distribute", "artifact base core identity transfer wire"),
    ("example-web", ""),
    (
        "fuzz",
        "agent artifact base consensus core distribute host hub identity mirror registry server \
         store transfer wire",
    ),
    ("host", "base core store"),
    ("hub", "artifact base core identity mirror registry wire"),
    ("identity", "base"),
    ("mirror", "artifact base core identity wire"),
    ("registry", "base core identity wire"),
    ("server", "consensus core store transfer"),
    ("simulate", "consensus core server store transfer view"),
    ("store", "base"),
    ("transfer", "base core"),
    ("trial", "core identity wire"),
    ("view", "base core wire"),
    ("wire", "base core identity transfer"),
    ("xtask", "base core identity trial view wire"),
];

/// Pure crates, and all that each may depend on.
const NOTHING_BUT: &[(&str, &[&str])] = &[
    ("core", &["serde"]),
    ("transfer", &["cohort-base", "cohort-core", "serde", "thiserror"]),
    (
        "server",
        &[
            "blake3",
            "cohort-base",
            "cohort-consensus",
            "cohort-core",
            "cohort-store",
            "cohort-transfer",
            "serde",
            "serde_json",
            "thiserror",
        ],
    ),
];

/// Libraries that only one crate may use.
const ONLY_IN: &[(&str, &[&str])] = &[("consensus", &["raft", "protobuf"])];

/// The page with the drawing and the code map.
pub(crate) const PAGE: &str = "ARCHITECTURE.md";
const BEGIN: &str = "<!-- arrows: drawn by `cargo xtask tidy --fix` -->\n```text\n";
const END: &str = "```\n";

/// The arrows in the manifests.
pub(crate) fn actual(files: &[File]) -> Result<Arrows> {
    let mut arrows = Arrows::new();
    for (home, to) in manifests(files)? {
        let ours = to.iter().filter_map(|name| name.strip_prefix("cohort-")).map(str::to_owned);
        arrows.insert(home, ours.collect());
    }
    Ok(arrows)
}

/// Everything that each crate depends on, except in tests.
fn manifests(files: &[File]) -> Result<Arrows> {
    let mut all = Arrows::new();
    for file in files.iter().filter(|file| file.path.ends_with("/Cargo.toml")) {
        let Some(home) = file.home() else { continue };
        let parsed: toml::Table = toml::from_str(&file.text).with_context(|| file.path.clone())?;
        let table = parsed.get("dependencies").and_then(toml::Value::as_table);
        all.insert(home, table.into_iter().flat_map(toml::Table::keys).cloned().collect());
    }
    Ok(all)
}

/// Compares the arrows that exist with those allowed.
pub(crate) fn check(files: &[File], allowed: &[(&str, &str)]) -> Result<Vec<Complaint>> {
    let mut complaints = Vec::new();
    let allowed: BTreeMap<&str, BTreeSet<&str>> =
        allowed.iter().map(|(from, to)| (*from, to.split_whitespace().collect())).collect();
    let mut add = |home: &str, what: String| {
        complaints.push(complaint(format!("{home}/Cargo.toml"), 1, what));
    };
    let none = BTreeSet::new();
    for (from, to) in actual(files)? {
        let to: BTreeSet<&str> = to.iter().map(String::as_str).collect();
        let may = allowed.get(from.as_str()).unwrap_or(&none);
        for wrong in to.difference(may) {
            add(&from, format!("`{from}` must not depend on `{wrong}` (or allow it in arrows.rs)"));
        }
        for unused in may.difference(&to) {
            add(&from, format!("`{from}` no longer depends on `{unused}`: remove it in arrows.rs"));
        }
    }
    for (from, to) in manifests(files)? {
        for (_, only) in NOTHING_BUT.iter().filter(|(name, _)| *name == from) {
            for other in to.iter().filter(|other| !only.contains(&other.as_str())) {
                add(&from, format!("`{from}` must not depend on `{other}`: only on {only:?}"));
            }
        }
        for (owner, libraries) in ONLY_IN.iter().filter(|(owner, _)| *owner != from) {
            for library in libraries.iter().filter(|library| to.contains(**library)) {
                add(&from, format!("only `{owner}` may depend on `{library}`"));
            }
        }
    }
    Ok(complaints)
}

/// Checks that the drawing shows what exists, and the code map names every crate.
pub(crate) fn check_page(files: &[File]) -> Result<Vec<Complaint>> {
    let Some(page) = files.iter().find(|file| file.path == PAGE) else { return Ok(Vec::new()) };
    let arrows = actual(files)?;
    let mut complaints = Vec::new();
    if drawn(&page.text, &arrows).as_deref() != Some(page.text.as_str()) {
        let what = "the drawing of the crates is out of date: run cargo xtask tidy --fix";
        complaints.push(complaint(PAGE.to_owned(), 1, what.to_owned()));
    }
    let crates = arrows.keys().filter(|name| *name != "xtask" && !name.starts_with("example-"));
    for name in crates.filter(|name| !page.text.contains(&format!("\n| `{name}` |"))) {
        complaints.push(complaint(PAGE.to_owned(), 1, format!("the code map lacks `{name}`")));
    }
    Ok(complaints)
}

/// The page with its drawing redone; `None` if it has no place for one.
pub(crate) fn drawn(page: &str, arrows: &Arrows) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}{}{END}{after}", drawing(arrows)))
}

/// A line for each crate that depends on another, from the top down. Transitive dependencies are
/// left out.
fn drawing(arrows: &Arrows) -> String {
    let mut lines: Vec<(usize, String)> = Vec::new();
    for (from, to) in arrows.iter().filter(|(_, to)| !to.is_empty()) {
        let indirect: BTreeSet<&String> = to.iter().flat_map(|next| below(arrows, next)).collect();
        let direct: Vec<&str> =
            to.iter().filter(|next| !indirect.contains(next)).map(String::as_str).collect();
        lines.push((height(arrows, from), format!("{from:<12}──► {}\n", direct.join(", "))));
    }
    lines.sort_by(|(a, left), (b, right)| b.cmp(a).then(left.cmp(right)));
    lines.into_iter().map(|(_, line)| line).collect()
}

/// Everything that a crate depends on, directly or indirectly. Cargo refuses cycles.
fn below<'a>(arrows: &'a Arrows, from: &str) -> BTreeSet<&'a String> {
    let direct = arrows.get(from).into_iter().flatten();
    direct.flat_map(|next| below(arrows, next).into_iter().chain([next])).collect()
}

fn height(arrows: &Arrows, from: &str) -> usize {
    let direct = arrows.get(from).into_iter().flatten();
    direct.map(|next| height(arrows, next) + 1).max().unwrap_or(0)
}

#[cfg(test)]
#[path = "arrows_test.rs"]
mod arrows_test;
