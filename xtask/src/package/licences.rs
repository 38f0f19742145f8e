//! The licence texts of everything that is linked into the program, which its licences ask for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::build::cargo;

/// Prefixes of the files that say under which terms a crate is, in upper case.
const NAMES: &[&str] = &["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE", "UNLICENSE"];

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
    manifest_path: PathBuf,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    /// `None` for what is linked.
    kind: Option<String>,
}

/// Every third-party crate with its texts; the same text once.
pub(super) fn all(sources: &Path, triple: &str) -> Result<Vec<u8>> {
    let mut command = cargo();
    command.current_dir(sources).args(["metadata", "--locked", "--format-version", "1"]);
    let output = command.args(["--filter-platform", triple]).output().context("cargo metadata")?;
    let metadata: Metadata = serde_json::from_slice(&output.stdout).context("cargo metadata")?;
    let linked = linked(&metadata);
    let mut text = String::from("Cohort contains these crates, under these terms.\n\n");
    let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut packages: Vec<&Package> = metadata.packages.iter().collect();
    packages.sort_by(|a, b| (&a.name, &a.version).cmp(&(&b.name, &b.version)));
    for package in packages {
        if package.source.is_none() || !linked.contains(package.id.as_str()) {
            continue;
        }
        let name = format!("{} {}", package.name, package.version);
        text += &format!("{name}: {}\n", package.license.as_deref().unwrap_or("see below"));
        for terms in texts(package.manifest_path.parent().unwrap_or(sources))? {
            users.entry(terms).or_default().push(name.clone());
        }
    }
    for (terms, names) in users {
        text += &format!("\n{}\n{}\n\n{}\n", "=".repeat(78), names.join(", "), terms.trim_end());
    }
    Ok(text.into_bytes())
}

/// The packages that end up in the program, by id.
fn linked(metadata: &Metadata) -> BTreeSet<&str> {
    let nodes: BTreeMap<&str, &Node> =
        metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
    let program = metadata.packages.iter().filter(|it| it.source.is_none() && it.name == "cohort");
    let mut next: Vec<&str> = program.map(|package| package.id.as_str()).collect();
    let mut linked = BTreeSet::new();
    while let Some(id) = next.pop() {
        if linked.insert(id)
            && let Some(node) = nodes.get(id)
        {
            let is_linked = |it: &&Dependency| it.dep_kinds.iter().any(|it| it.kind.is_none());
            next.extend(node.deps.iter().filter(is_linked).map(|it| it.pkg.as_str()));
        }
    }
    linked
}

fn texts(folder: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        if entry.file_type()?.is_file() && NAMES.iter().any(|start| name.starts_with(start)) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    paths.iter().map(|path| Ok(String::from_utf8_lossy(&fs::read(path)?).into_owned())).collect()
}
