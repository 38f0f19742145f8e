//! The code map of `ARCHITECTURE.md` names every crate. Which may know which is held by
//! `crates/simulate/tests/architecture.rs`.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;

#[test]
fn the_code_map_names_every_crate() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let map = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    let mut crates = 0;
    for entry in fs::read_dir(root.join("crates")).unwrap() {
        let folder = entry.unwrap().path();
        if !folder.join("Cargo.toml").exists() {
            continue;
        }
        let name = folder.file_name().unwrap().to_str().unwrap().to_owned();
        assert!(map.contains(&format!("| `{name}` |")), "{name} is missing in ARCHITECTURE.md");
        crates += 1;
    }
    assert!(crates > 10, "only {crates} crates were found");
}
