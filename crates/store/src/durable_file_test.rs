//! Small records: writes are atomic, damage is detected, failures are final.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

use crate::{DurableFile, DurableFileError};

type Fences = BTreeMap<String, u64>;

fn fences(n: u64) -> Fences {
    [("web".to_owned(), n)].into()
}

#[test]
fn a_record_is_there_after_it_was_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fences");
    let (mut file, none) = DurableFile::<Fences>::open(&path, 1).unwrap();
    assert_eq!(none, None);
    for n in 1..=3 {
        file.save(&fences(n)).unwrap();
        let (_, found) = DurableFile::<Fences>::open(&path, 1).unwrap();
        assert_eq!(found, Some(fences(n)));
    }
    // Records hold secrets, such as the environment of services.
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn a_crash_while_writing_leaves_the_old_record() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fences");
    let (mut file, _) = DurableFile::<Fences>::open(&path, 1).unwrap();
    file.save(&fences(1)).unwrap();
    fs::write(folder.path().join(".unfinished-fences.abcdef"), b"cohort-dur").unwrap();
    let (mut file, found) = DurableFile::<Fences>::open(&path, 1).unwrap();
    assert_eq!(found, Some(fences(1)));
    file.save(&fences(2)).unwrap();
    assert_eq!(DurableFile::<Fences>::open(&path, 1).unwrap().1, Some(fences(2)));
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "no other file is left");
}

#[test]
fn every_damage_is_found_and_moved_aside() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fences");
    let (mut file, _) = DurableFile::<Fences>::open(&path, 1).unwrap();
    file.save(&fences(7)).unwrap();
    let whole = fs::read(&path).unwrap();
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x10;
        fs::write(&path, &flipped).unwrap();
        let error = DurableFile::<Fences>::open(&path, 1).unwrap_err();
        let DurableFileError::Damaged { moved_to, .. } = error else { panic!("{error}") };
        assert_eq!(fs::read(&moved_to).unwrap(), flipped);
        assert_eq!(DurableFile::<Fences>::open(&path, 1).unwrap().1, None, "moved aside");
    }
    fs::write(&path, b"").unwrap();
    assert!(DurableFile::<Fences>::open(&path, 1).is_err());
    let mut longer = whole;
    longer.push(b' ');
    fs::write(&path, longer).unwrap();
    assert!(DurableFile::<Fences>::open(&path, 1).is_err());
}

#[test]
fn a_record_of_another_kind_is_damage() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fences");
    let (mut file, _) = DurableFile::<Vec<u8>>::open(&path, 1).unwrap();
    file.save(&vec![1]).unwrap();
    let error = DurableFile::<Fences>::open(&path, 1).unwrap_err();
    assert!(matches!(error, DurableFileError::Damaged { .. }), "{error}");
}

#[test]
fn after_a_failed_write_no_more_are_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fences");
    let (mut file, _) = DurableFile::<Fences>::open(&path, 1).unwrap();
    file.save(&fences(1)).unwrap();
    // A directory in place of the file makes the rename fail.
    let away = folder.path().join("away");
    fs::rename(&path, &away).unwrap();
    fs::create_dir(&path).unwrap();
    assert!(matches!(file.save(&fences(2)), Err(DurableFileError::Write(_))));
    fs::remove_dir(&path).unwrap();
    fs::rename(&away, &path).unwrap();
    assert!(matches!(file.save(&fences(3)), Err(DurableFileError::Poisoned { .. })));
    assert_eq!(DurableFile::<Fences>::open(&path, 1).unwrap().1, Some(fences(1)));
}

#[test]
fn a_huge_file_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fences");
    let mut file = fs::File::create(&path).unwrap();
    file.write_all(b"cohort-durable 1").unwrap();
    file.set_len(17 * 1024 * 1024).unwrap();
    let error = DurableFile::<Fences>::open(&path, 1).unwrap_err();
    assert!(matches!(error, DurableFileError::Damaged { .. }), "{error}");
}

#[test]
fn a_record_of_another_version_is_refused_and_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("fences");
    let (mut file, _) = DurableFile::<Fences>::open(&path, 7).unwrap();
    file.save(&fences(1)).unwrap();
    for supported in [6, 8] {
        let error = DurableFile::<Fences>::open(&path, supported).unwrap_err();
        let DurableFileError::Version { found, supported: reads, .. } = error else {
            panic!("{error}")
        };
        assert_eq!((found, reads), (7, supported));
    }
    assert_eq!(DurableFile::<Fences>::open(&path, 7).unwrap().1, Some(fences(1)));
    // One whose version was changed by hand is damaged.
    let text = fs::read_to_string(&path).unwrap().replace("version=7", "version=8");
    fs::write(&path, text).unwrap();
    let error = DurableFile::<Fences>::open(&path, 8).unwrap_err();
    assert!(matches!(error, DurableFileError::Damaged { .. }), "{error}");
}
