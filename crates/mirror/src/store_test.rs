use std::path::Path;

use cohort_artifact::UnitHasher;

#[test]
fn the_format_of_artifacts_is_held() {
    let bytes = b"an artifact of a single unit";
    let mut hasher = UnitHasher::default();
    hasher.update(bytes);
    let units = hasher.finish().unwrap();
    let file = [&bytes[..], &units.to_bytes()].concat();
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/cached-artifact.jsonl");
    let held = [(units.root().clone(), file.clone())];
    cohort_base::golden::hold(Path::new(golden), &held);
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("blob"), file).unwrap();
    let (read, _) = super::read(&dir.path().join("blob"), units.root()).unwrap();
    assert_eq!(read, units);
}
