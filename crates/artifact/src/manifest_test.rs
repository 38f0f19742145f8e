use serde_json::{Value, json};

use super::{Manifest, ManifestError, Rollback, parse_rollback};

fn value() -> Value {
    let root = "ab".repeat(32);
    json!({
        "schema": 1, "app": "web", "version": "1.0.0", "platform": "linux/amd64",
        "format": "tar.zst", "length": 65_537, "root": root, "unit_bytes": 65_536,
        "unpacked_bytes": 10, "entries": 1, "deltas": [],
        "protocols": { "reads": ["orders/1", "orders/2"], "writes": ["orders/2"] },
        "schemas": [], "rollback": "forward-only", "created_at": "2026-01-02T03:04:05Z"
    })
}

fn parse(value: &Value) -> Result<Manifest, ManifestError> {
    Manifest::parse(&serde_json::to_vec(value).unwrap())
}

#[test]
fn reads_what_it_writes() {
    let manifest = parse(&value()).unwrap();
    assert_eq!(manifest.rollback, Rollback::ForwardOnly);
    let bytes = manifest.to_bytes();
    assert!(bytes.starts_with(b"{\n  \"schema\": 1,"), "schema version first");
    assert_eq!(Manifest::parse(&bytes).unwrap(), manifest);
}

#[test]
fn a_newer_schema_is_told_apart_from_a_damaged_file() {
    let mut newer = value();
    newer["schema"] = json!(2);
    newer["something_new"] = json!(true);
    assert!(matches!(parse(&newer), Err(ManifestError::NewerSchema { found: 2, .. })));
    assert!(matches!(Manifest::parse(b"{"), Err(ManifestError::Json(_))));
}

#[test]
fn every_broken_rule_is_refused() {
    let breaks: &[(&str, Value)] = &[
        ("schema", json!(0)),
        ("something_new", json!(true)),
        ("app", json!("../web")),
        ("version", json!("../1")),
        ("platform", json!("linux/../..")),
        ("length", json!(0)),
        ("length", json!((16_u64 << 30) + 1)),
        ("root", json!("xy")),
        ("unit_bytes", json!(1024)),
        ("unpacked_bytes", json!(1_u64 << 40)),
        ("entries", json!(1_000_000)),
        ("schemas", json!(["with space"])),
        ("schemas", json!((0..65).map(|n| n.to_string()).collect::<Vec<_>>())),
        ("rollback", json!("maybe")),
        ("created_at", json!("2026-01-02T03:04:05.5Z")),
    ];
    for (field, wrong) in breaks {
        let mut broken = value();
        broken[*field] = wrong.clone();
        assert!(parse(&broken).is_err(), "{field} = {wrong} was accepted");
    }
    let long = vec![b' '; 70_000];
    assert!(matches!(Manifest::parse(&long), Err(ManifestError::TooLong { .. })));
}

#[test]
fn rollback_is_read_from_its_three_words() {
    assert_eq!(parse_rollback("forward-only").unwrap(), Rollback::ForwardOnly);
    assert!(parse_rollback("Revert").is_err());
}
