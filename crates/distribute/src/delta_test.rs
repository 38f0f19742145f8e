//! Deltas on a server's disk: chosen, applied, refused.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::slice::from_ref;
use std::sync::Arc;

use cohort_artifact::{Delta, DeltaMaker, hash_file, pack_folder};
use cohort_core::release::Release;

use super::{ApplyError, FAILED, TRIES_MAX};
use crate::testing::{Disk, Sample, UNIT};
use crate::{ArtifactStore, StoreError};

/// Two releases, and the delta from the first to the second.
pub(crate) struct Pair {
    pub(crate) old: Sample,
    pub(crate) new: Sample,
    pub(crate) blob: Sample,
    pub(crate) delta: Delta,
}

impl Pair {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let pack = |name: &str, change: &dyn Fn(&mut Vec<u8>)| {
            let source = folder.path().join(name);
            fs::create_dir_all(&source).unwrap();
            let mut program = vec![0; 12 * UNIT];
            blake3::Hasher::new().update(b"program").finalize_xof().fill(&mut program);
            change(&mut program);
            fs::write(source.join("app"), program).unwrap();
            let artifact = folder.path().join(format!("{name}.tar.zst"));
            pack_folder(&source, &mut File::create(&artifact).unwrap()).unwrap();
            artifact
        };
        let old = pack("old", &|_| {});
        let new = pack("new", &|program| {
            program.iter_mut().step_by(20_000).for_each(|byte| *byte ^= 3);
        });
        let whole = hash_file(&new).unwrap();
        let maker = DeltaMaker::new(&new, whole.root(), whole.length(), folder.path());
        let maker = maker.unwrap().unwrap();
        let path = folder.path().join("delta");
        let file = File::options().read(true).write(true).create_new(true).open(&path).unwrap();
        let made = maker.delta_from(&old, &file, &|| false).unwrap().unwrap();
        let (old, new) = (sample(&old), sample(&new));
        let delta = Delta {
            from: old.digest().clone(),
            method: maker.method().to_string(),
            length: made.length(),
            root: made.root().clone(),
        };
        Self { old, new, blob: sample(&path), delta }
    }

    fn choose(&self, store: &ArtifactStore, deltas: &[Delta]) -> Option<Delta> {
        store.choose_delta(self.new.digest(), self.new.release.length, deltas)
    }

    pub(crate) fn apply(&self, store: &Arc<ArtifactStore>) -> Result<(), ApplyError> {
        let (artifact, length) = (self.new.digest(), self.new.release.length);
        store.apply_delta(artifact, length, &self.delta, 0, &|| false)
    }
}

fn sample(path: &Path) -> Sample {
    let hashes = hash_file(path).unwrap();
    let plain = Sample::new("any", 1);
    let (artifact, length) = (hashes.root().clone(), hashes.length());
    let release = Release { artifact, length, ..plain.release };
    Sample { bytes: fs::read(path).unwrap().into(), hashes, release }
}

/// Puts some units of an artifact there, as an interrupted download would.
fn hold_some(disk: &Disk, sample: &Sample, units: u32) {
    let claim = disk.store.claim(sample.digest(), sample.release.length).unwrap();
    let hashes = claim.put_hashes(&sample.hashes.to_bytes()).unwrap();
    let part = claim.begin(hashes, 0).unwrap();
    for index in 0..units {
        part.write(index, sample.unit(index)).unwrap();
    }
}

fn names(disk: &Disk) -> Vec<String> {
    let folder = disk.folder.path().join("a");
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_delta_leads_to_the_signed_artifact() {
    let (pair, disk) = (Pair::new(), Disk::new());
    let deltas = [pair.delta.clone()];
    assert_eq!(pair.choose(&disk.store, &deltas), None, "there is no base");
    disk.hold(&pair.old);
    assert_eq!(pair.choose(&disk.store, &deltas), Some(pair.delta.clone()));
    assert_eq!(pair.choose(&disk.store, &[]), None);
    let error = pair.apply(&disk.store).unwrap_err();
    assert!(matches!(error, ApplyError::Store(StoreError::Absent { .. })), "{error}");
    disk.hold(&pair.blob);
    // The remains of an earlier download do no harm, and are removed.
    hold_some(&disk, &pair.new, 2);
    pair.apply(&disk.store).unwrap();
    disk.assert_holds(&pair.new);
    assert_eq!(names(&disk).len(), 6, "three artifacts and their hashes: {:?}", names(&disk));
    let reopened = disk.reopened();
    assert!(reopened.is_whole(pair.new.digest()));
    assert!(reopened.unit_hashes(pair.new.digest()).is_ok());
    assert_eq!(pair.choose(&disk.store, &deltas), None, "it is whole");
    pair.apply(&disk.store).unwrap();
}

#[test]
fn only_what_is_less_than_what_is_missing() {
    let (pair, disk) = (Pair::new(), Disk::new());
    disk.hold(&pair.old);
    let deltas = [pair.delta.clone()];
    let units = pair.new.hashes.count();
    hold_some(&disk, &pair.new, units / 2);
    assert!(pair.choose(&disk.store, &deltas).is_some());
    // A delta of three units is shorter than half of the artifact, but longer than the last unit.
    let long = Delta { length: 3 * UNIT as u64, ..pair.delta.clone() };
    assert_eq!(pair.choose(&disk.store, from_ref(&long)), Some(long.clone()));
    hold_some(&disk, &pair.new, units - 1);
    assert_eq!(pair.choose(&disk.store, from_ref(&long)), None);
    // The shortest one that can be applied.
    assert_eq!(pair.choose(&disk.store, &[long, pair.delta.clone()]), Some(pair.delta));
}

#[test]
fn a_way_that_is_not_known_here_is_passed_over() {
    let (pair, disk) = (Pair::new(), Disk::new());
    disk.hold(&pair.old);
    for method in ["bsdiff", "segments-1+zstd-99999-3", ""] {
        let other = Delta { method: method.into(), ..pair.delta.clone() };
        assert_eq!(pair.choose(&disk.store, from_ref(&other)), None);
        let found = pair.choose(&disk.store, &[other, pair.delta.clone()]);
        assert_eq!(found, Some(pair.delta.clone()));
    }
    for length in [0, pair.new.release.length, u64::MAX] {
        let odd = Delta { length, ..pair.delta.clone() };
        assert_eq!(pair.choose(&disk.store, &[odd]), None);
    }
}

#[test]
fn a_hostile_delta_changes_nothing_and_is_not_tried_again() {
    let pair = Pair::new();
    // Signed, but wrong: another base under the name, another delta.
    let other = Sample::new("other", 3 * UNIT);
    for (base, blob) in [(&pair.old, &other), (&other, &pair.blob)] {
        let disk = Disk::new();
        let delta = Delta {
            from: base.digest().clone(),
            root: blob.digest().clone(),
            length: blob.release.length,
            ..pair.delta.clone()
        };
        disk.hold(base);
        disk.hold(blob);
        hold_some(&disk, &pair.new, 3);
        let before = names(&disk);
        let (artifact, length) = (pair.new.digest(), pair.new.release.length);
        let error = disk.store.apply_delta(artifact, length, &delta, 0, &|| false).unwrap_err();
        assert!(matches!(error, ApplyError::Delta { .. }), "{error}");
        assert!(!disk.store.is_whole(artifact));
        let mut after = names(&disk);
        after.retain(|name| *name != format!("{artifact}.delta"));
        assert_eq!(after, before);
        assert_eq!(disk.store.tries(artifact), FAILED);
        assert_eq!(pair.choose(&disk.store, &[pair.delta.clone(), delta]), None);
        // The whole artifact resumes where it was.
        let claim = disk.store.claim(artifact, length).unwrap();
        let part = claim.begin(claim.hashes().unwrap().unwrap(), 0).unwrap();
        assert_eq!(part.held(), 3);
    }
}

#[test]
fn a_base_that_rotted_is_noticed() {
    let (pair, disk) = (Pair::new(), Disk::new());
    disk.hold(&pair.old);
    disk.hold(&pair.blob);
    let path = disk.store.path(pair.old.digest()).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&path, bytes).unwrap();
    assert!(matches!(pair.apply(&disk.store), Err(ApplyError::Delta { .. })));
    assert!(!disk.store.is_whole(pair.new.digest()));
}

#[test]
fn a_crash_in_the_middle_costs_a_try() {
    let (pair, disk) = (Pair::new(), Disk::new());
    disk.hold(&pair.old);
    disk.hold(&pair.blob);
    for tries in 0..TRIES_MAX {
        // The remains of a process that ended while writing the result.
        disk.store.put_tries(pair.new.digest(), tries).unwrap();
        let aside = disk.file(&format!(".unfinished-{}", pair.new.digest()));
        File::create(&aside).unwrap().write_all(&pair.new.bytes[..UNIT]).unwrap();
        let reopened = disk.reopened();
        assert!(!aside.exists() && !reopened.is_whole(pair.new.digest()));
        assert!(pair.choose(&reopened, from_ref(&pair.delta)).is_some(), "after {tries}");
    }
    disk.store.put_tries(pair.new.digest(), TRIES_MAX).unwrap();
    assert_eq!(pair.choose(&disk.reopened(), from_ref(&pair.delta)), None);
    // Stopped by us: no try is lost.
    disk.store.put_tries(pair.new.digest(), 0).unwrap();
    let (artifact, length) = (pair.new.digest(), pair.new.release.length);
    let error = disk.store.apply_delta(artifact, length, &pair.delta, 0, &|| true).unwrap_err();
    assert!(matches!(error, ApplyError::Delta { .. }), "{error}");
    assert_eq!(disk.store.tries(artifact), 0);
    // Everything that no order keeps is removed, including the count.
    disk.store.put_tries(artifact, 1).unwrap();
    disk.store.collect(&[pair.old.digest().clone()].into()).unwrap();
    assert_eq!(names(&disk).len(), 2, "{:?}", names(&disk));
}

#[test]
fn a_full_disk_is_told_before_anything_is_written() {
    let pair = Pair::new();
    let disk = Disk::new();
    disk.hold(&pair.old);
    disk.hold(&pair.blob);
    let before = names(&disk);
    let small = Arc::new(|_: &Path| Ok(100 << 10));
    let store = ArtifactStore::open_on(disk.folder.path().join("a"), small).unwrap();
    let error = pair.apply(&Arc::new(store)).unwrap_err();
    assert!(matches!(error, ApplyError::Store(StoreError::NoSpace { .. })), "{error}");
    let mut after = names(&disk);
    after.retain(|name| !name.ends_with(".delta"));
    assert_eq!(after, before);
}
