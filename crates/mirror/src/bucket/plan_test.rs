use std::collections::BTreeMap;

use super::{LocalFile, next_in_chain, stages, version_of};

fn files(names: &[&str]) -> Vec<LocalFile> {
    names.iter().map(|path| LocalFile { path: (*path).to_owned(), length: 7 }).collect()
}

#[test]
fn readers_never_see_a_name_before_what_it_names() {
    let root = "a".repeat(64);
    let blob = format!("blobs/{root}");
    let units = format!("blobs/{root}.units");
    let target = format!("targets/apps/web/1.0.0/linux~amd64/{root}.manifest.json");
    let local = files(&[
        "metadata/2.root.json",
        "metadata/3.targets.json",
        "metadata/timestamp.json",
        &target,
        &units,
        &blob,
    ]);
    let planned = stages(local.clone(), &BTreeMap::new(), &[], false);
    assert_eq!(
        planned,
        [
            files(&[&units, &blob]),
            files(&[&target]),
            files(&["metadata/3.targets.json"]),
            files(&["metadata/2.root.json"])
        ]
    );
    // A file with the right length is not sent again, unless requested.
    let mut there: BTreeMap<String, u64> =
        local.iter().map(|file| (file.path.clone(), 7)).collect();
    assert_eq!(stages(local.clone(), &there, &[], false).concat(), []);
    assert_eq!(stages(local.clone(), &there, &[], true).concat().len(), 5);
    there.insert(blob.clone(), 6);
    let current = ["metadata/3.targets.json".to_owned()];
    let planned = stages(local, &there, &current, false).concat();
    assert_eq!(planned, files(&[&blob, "metadata/3.targets.json"]));
}

#[test]
fn numbers_are_read_and_nothing_else() {
    let timestamp = br#"{"signed": {"version": 12, "meta": {"snapshot.json": {"version": 9}}}}"#;
    assert_eq!(version_of(timestamp), 12);
    let next = next_in_chain(timestamp, "snapshot");
    assert_eq!(next.as_deref(), Some("metadata/9.snapshot.json"));
    assert_eq!(next_in_chain(timestamp, "targets"), None);
    assert_eq!(version_of(b"<html>"), 0);
    assert_eq!(next_in_chain(b"{}", "snapshot"), None);
}
