//! The drawing of ARCHITECTURE.md, held by a test: which crate may know which.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

/// Every crate, and what it may depend on within the workspace.
const ARROWS: &[(&str, &[&str])] = &[
    ("core", &[]),
    // The ground floor: whoever else may stand on it, except the core (below).
    ("base", &[]),
    // What the demo rolls out: a service of its own, which knows nothing of Cohort.
    ("example-web", &[]),
    ("store", &[]),
    ("consensus", &["store", "core"]),
    ("identity", &["core"]),
    ("artifact", &["core"]),
    ("wire", &["core", "identity"]),
    ("registry", &["core", "wire", "artifact", "identity"]),
    ("transfer", &["core"]),
    ("distribute", &["core", "wire", "artifact", "store", "identity", "transfer"]),
    ("host", &["core", "wire", "artifact", "store", "identity"]),
    ("mirror", &["core", "wire", "artifact", "identity"]),
    ("server", &["core", "consensus", "store"]),
    ("simulate", &["core", "consensus", "store", "transfer", "server"]),
    (
        "agent",
        &[
            "core",
            "store",
            "consensus",
            "identity",
            "artifact",
            "wire",
            "registry",
            "distribute",
            "host",
            "server",
        ],
    ),
    (
        "hub",
        &[
            "core",
            "store",
            "consensus",
            "identity",
            "artifact",
            "wire",
            "registry",
            "distribute",
            "mirror",
        ],
    ),
    (
        "cli",
        &[
            "core",
            "store",
            "consensus",
            "identity",
            "artifact",
            "wire",
            "registry",
            "distribute",
            "host",
            "agent",
            "hub",
            "mirror",
        ],
    ),
    // Plays the whole with real processes: nobody depends on it.
    (
        "trial",
        &[
            "core",
            "store",
            "consensus",
            "identity",
            "artifact",
            "wire",
            "registry",
            "distribute",
            "host",
            "agent",
            "hub",
            "mirror",
        ],
    ),
];

/// What each crate of the workspace depends on: crates of the workspace, and others. Dependencies
/// of tests are left out: a test may know more than what it tests.
fn dependencies() -> BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |value: &serde_json::Value| value.as_str().expect("a text").to_owned();
    let mut all = BTreeMap::new();
    for package in metadata["packages"].as_array().expect("packages") {
        let name = text(&package["name"]);
        let Some(name) = name.strip_prefix("cohort-").or((name == "cohort").then_some("cli"))
        else {
            continue;
        };
        let (mut own, mut others) = (BTreeSet::new(), BTreeSet::new());
        for dependency in package["dependencies"].as_array().expect("dependencies") {
            if !dependency["kind"].is_null() {
                continue;
            }
            let dependency = text(&dependency["name"]);
            match dependency.strip_prefix("cohort-") {
                Some(ours) => own.insert(ours.to_owned()),
                None => others.insert(dependency),
            };
        }
        all.insert(name.to_owned(), (own, others));
    }
    all
}

#[test]
fn dependencies_point_one_way() {
    let all = dependencies();
    let drawn: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    for (name, (own, _)) in &all {
        let allowed = drawn.get(name.as_str());
        let allowed = allowed.unwrap_or_else(|| panic!("`{name}` is not in the drawing"));
        let wrong: Vec<&String> = own
            .iter()
            .filter(|other| *other != "base" && !allowed.contains(&other.as_str()))
            .collect();
        assert!(wrong.is_empty(), "`{name}` must not depend on {wrong:?}");
    }
}

#[test]
fn the_core_knows_nothing() {
    let all = dependencies();
    let (own, others) = &all["core"];
    assert!(own.is_empty(), "{own:?}");
    assert_eq!(*others, BTreeSet::from(["serde".to_owned()]), "the core knows only serde");
}

#[test]
fn who_fetches_from_whom_is_decided_without_io() {
    let all = dependencies();
    let (own, others) = &all["transfer"];
    assert_eq!(*own, BTreeSet::from(["base", "core"].map(str::to_owned)));
    assert_eq!(*others, BTreeSet::from(["serde", "thiserror"].map(str::to_owned)));
}

#[test]
fn only_consensus_knows_the_raft_library() {
    for (name, (_, others)) in dependencies() {
        let knows = others.contains("raft") || others.contains("protobuf");
        assert!(!knows || name == "consensus", "`{name}` knows the Raft library");
    }
}
