//! On a real file system that is too small.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use tokio::sync::Semaphore;

use super::*;
use crate::fetch::FetchError;
use crate::testing::{Disk, Manners, Mirror, Sample, UNIT, context, fetch_once, patient};

/// Path of the small file system, for a test that was restarted on it.
const FOLDER: &str = "COHORT_TEST_SMALL_DISK";

/// Its size in KiB.
const DISK_KIB: usize = 1024;

/// The directory of a small file system, in its own mount namespace; `None` outside, where this
/// runs the test `own` again.
fn small_disk(own: &str) -> Option<PathBuf> {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return Some(folder.into());
    }
    let folder = tempfile::tempdir().unwrap();
    // Root needs no user namespace; other users may be allowed to create one.
    let root = rustix::process::geteuid().is_root();
    let user: &[&str] = if root { &[] } else { &["--user", "--map-root-user"] };
    let on_it = |args: &[&OsStr]| {
        let mount = format!("mount -t tmpfs -o size={DISK_KIB}k none \"$0\" && exec \"$@\"");
        let mut command = Command::new("unshare");
        command.args(user).args(["--mount", "sh", "-c", &mount]).arg(folder.path()).args(args);
        let output = command.env(FOLDER, folder.path()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout) + &text(&output.stderr))
    };
    let (able, said) = on_it(&[OsStr::new("true")]);
    if !able {
        let why = format!("`unshare --mount` and a tmpfs in it are needed here: {said}");
        assert!(std::env::var_os("CI").is_none(), "a skipped test is a failure; {why}");
        eprintln!("skipped; {why}");
        return None;
    }
    let program = std::env::current_exe().unwrap();
    let own = format!("part::part_test::{own}");
    let args = [program.as_os_str(), OsStr::new(&own), OsStr::new("--exact")];
    let (passed, said) = on_it(&args);
    // A misspelt name would pass too.
    assert!(passed && said.contains("1 passed"), "on the small disk: {said}");
    None
}

/// A store that believes there is more room than there is: something else takes it just then.
fn store(folder: &Path) -> Disk {
    Disk::at(tempfile::tempdir_in(folder).unwrap(), || u64::MAX)
}

fn sample() -> Sample {
    Sample::new("part", 2 * DISK_KIB * 1024)
}

fn claimed(disk: &Disk, sample: &Sample) -> u64 {
    fs::metadata(disk.file(&format!("{}.part", sample.digest()))).unwrap().blocks() * 512
}

#[test]
fn space_is_claimed_slice_by_slice_to_the_end() {
    let (disk, sample) = (Disk::new(), Sample::new("slices", 2 * CLAIM_BYTES as usize + 77));
    let claim = disk.store.claim(sample.digest(), sample.release.length).unwrap();
    let part = claim.begin(claim.put_hashes(&sample.hashes.to_bytes()).unwrap(), 0).unwrap();
    part.write(3, sample.unit(3)).unwrap();
    Part::claim_space(&Arc::downgrade(&part)).unwrap();
    assert!(claimed(&disk, &sample) >= sample.release.length, "nothing else is to fail later");
    let left = disk.reopened().claim(sample.digest(), sample.release.length).unwrap();
    let part = left.begin(left.hashes().unwrap().unwrap(), 0).unwrap();
    assert!(part.held() == 1 && part.has(3), "and what was written stays");
}

#[test]
fn where_the_space_is_not_there_it_is_given_back_and_units_stay() {
    let Some(folder) = small_disk("where_the_space_is_not_there_it_is_given_back_and_units_stay")
    else {
        return;
    };
    let (disk, sample) = (store(&folder), sample());
    let claim = disk.store.claim(sample.digest(), sample.release.length).unwrap();
    let part = claim.begin(claim.put_hashes(&sample.hashes.to_bytes()).unwrap(), 0).unwrap();
    for index in [0, 2] {
        part.write(index, sample.unit(index)).unwrap();
    }
    let error = Part::claim_space(&Arc::downgrade(&part)).unwrap_err();
    let StoreError::Taken { source, .. } = &error else { panic!("{error}") };
    assert_eq!(source.kind(), io::ErrorKind::StorageFull);
    assert_eq!(claimed(&disk, &sample), 2 * UNIT as u64, "others have the rest");
    let error = part.write(4, sample.unit(4)).unwrap_err();
    assert!(matches!(error, WriteError::Disk(StoreError::Taken { .. })), "{error}");
    assert_eq!(part.held(), 2);
    drop((part, claim));

    let left = disk.store.claim(sample.digest(), sample.release.length).unwrap();
    let part = left.begin(left.hashes().unwrap().unwrap(), 0).unwrap();
    assert!(part.has(0) && part.has(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fetch_whose_space_others_take_ends_at_once() {
    let Some(folder) = small_disk("a_fetch_whose_space_others_take_ends_at_once") else { return };
    let (disk, sample) = (store(&folder), sample());
    // Not a single unit arrives: the disk ends the fetch.
    let closed = Arc::new(Semaphore::new(0));
    let manners = Manners { gate: Some((0, Arc::clone(&closed))), ..Manners::default() };
    let mirror = Mirror::start(&[&sample], manners).await;
    let context = context(&disk, &[&mirror], patient());
    let (result, _) = fetch_once(&context, sample.order()).await;
    let error = result.unwrap_err();
    let FetchError::Store(StoreError::Taken { path, .. }) = &error else { panic!("{error}") };
    assert_eq!(*path, disk.file(&format!("{}.part", sample.digest())));
    assert_eq!(claimed(&disk, &sample), 0, "nothing keeps the disk full");
}
