use std::fs::File;

use super::{free_bytes, lock, names, preallocate};

#[test]
fn a_lock_is_held_as_long_as_its_file_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let held = lock(&path).unwrap().expect("nobody has it");
    assert!(lock(&path).unwrap().is_none());
    drop(held);
    assert!(lock(&path).unwrap().is_some());
    assert!(lock(&dir.path().join("absent/lock")).is_err());
}

#[test]
fn a_file_that_was_removed_or_replaced_is_no_longer_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lock");
    let held = lock(&path).unwrap().unwrap();
    assert!(names(&path, &held).unwrap());
    std::fs::remove_file(&path).unwrap();
    assert!(!names(&path, &held).unwrap());
    let _other = lock(&path).unwrap().unwrap();
    assert!(!names(&path, &held).unwrap());
}

#[test]
fn what_is_preallocated_is_there_and_more_than_there_is_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("file")).unwrap();
    if preallocate(&file, 0, 4_096).unwrap() {
        assert_eq!(file.metadata().unwrap().len(), 4_096);
    }
    assert!(!matches!(preallocate(&file, 0, u64::MAX), Ok(true)));
    assert!(free_bytes(dir.path()).unwrap() > 0);
    assert!(free_bytes(&dir.path().join("absent")).is_err());
}
