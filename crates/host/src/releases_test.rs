use super::*;
use crate::testing::{golden, release_of};

#[test]
fn the_marker() {
    let marker = Marker { schema: MARKER_SCHEMA, release: release_of("2.0.0") };
    cohort_base::golden::hold(&golden("marker.jsonl"), &[marker]);
}

#[test]
fn a_folder_with_a_marker_of_another_schema_is_not_whole() {
    let folder = tempfile::tempdir().unwrap();
    let release = release_of("2.0.0");
    write_marker(folder.path(), &release).unwrap();
    assert_eq!(read_marker(folder.path()), Some(release));
    let path = folder.path().join(MARKER);
    let later = fs::read_to_string(&path).unwrap().replacen(":1,", ":2,", 1);
    fs::write(path, later).unwrap();
    assert_eq!(read_marker(folder.path()), None);
}
