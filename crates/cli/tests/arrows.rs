//! The arrows of `ARCHITECTURE.md`: which crate may know which. A wrong one fails here.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use toml::{Table, Value};

/// What each crate may depend on. An arrow that is allowed need not exist.
const ARROWS: &[(&str, &[&str])] = &[
    ("core", &[]),
    ("store", &[]),
    ("identity", &[]),
    ("consensus", &["store", "core"]),
    ("artifact", &["core"]),
    ("wire", &["core", "identity"]),
    ("registry", &["core", "identity", "wire", "artifact"]),
    ("distribute", &["core", "identity", "wire", "artifact"]),
    ("host", &["core", "store", "wire", "artifact"]),
    ("mirror", &["core", "identity", "wire", "artifact"]),
    ("hub", &["core", "identity", "wire", "artifact", "registry", "mirror"]),
    (
        "agent",
        &[
            "core",
            "identity",
            "wire",
            "artifact",
            "registry",
            "distribute",
            "host",
            "consensus",
            "store",
        ],
    ),
    (
        "cli",
        &[
            "core",
            "identity",
            "wire",
            "artifact",
            "registry",
            "distribute",
            "host",
            "agent",
            "hub",
            "mirror",
        ],
    ),
    ("simulate", &["core", "consensus", "store", "distribute"]),
    ("trial", &["core", "identity", "wire"]),
];

#[test]
fn every_crate_knows_only_what_it_may() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let allowed: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    for entry in fs::read_dir(crates).unwrap() {
        let folder = entry.unwrap().path();
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        let Ok(text) = fs::read_to_string(folder.join("Cargo.toml")) else { continue };
        let manifest: Table = text.parse().unwrap();
        let may = allowed.get(name.as_str());
        let may = may.unwrap_or_else(|| panic!("crate {name} is not in the drawing yet"));
        let dependencies = manifest.get("dependencies").and_then(Value::as_table);
        for dependency in dependencies.into_iter().flat_map(Table::keys) {
            let Some(other) = dependency.strip_prefix("cohort-") else { continue };
            assert!(may.contains(&other), "{name} must not know {other}: see ARCHITECTURE.md");
        }
    }
}

#[test]
fn the_code_map_names_every_crate() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let map = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    for (name, _) in ARROWS {
        assert!(map.contains(&format!("| `{name}` |")), "{name} is missing in ARCHITECTURE.md");
    }
}
