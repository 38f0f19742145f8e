use std::collections::BTreeSet;
use std::fs;
use std::sync::Arc;

use crate::StoreError;
use crate::part::Part;
use crate::part::WriteError;
use crate::testing::{Disk, Sample, UNIT};

fn sample() -> Sample {
    Sample::new("store", 6 * UNIT + 10)
}

#[test]
fn an_artifact_is_held_only_after_its_last_unit_and_the_rename() {
    let (disk, sample) = (Disk::new(), sample());
    let claim = disk.store.claim(sample.digest(), sample.release.length).unwrap();
    assert!(claim.hashes().unwrap().is_none() && !claim.is_whole());
    let hashes = claim.put_hashes(&sample.hashes.to_bytes()).unwrap();
    let part = claim.begin(hashes, 0).unwrap();
    for index in (1..7).rev() {
        assert!(part.write(index, sample.unit(index)).unwrap(), "new");
        assert!(!part.write(index, sample.unit(index)).unwrap(), "known");
    }
    let error = claim.finish(&part).unwrap_err();
    assert!(matches!(error, StoreError::NotWhole { held: 6, count: 7, .. }), "{error}");
    assert!(disk.store.held().is_empty() && disk.reopened().held().is_empty());
    part.write(0, sample.unit(0)).unwrap();
    claim.finish(&part).unwrap();
    assert!(claim.is_whole());
    assert_eq!(disk.store.held(), [sample.digest().clone()]);
    disk.assert_holds(&sample);
    assert_eq!(*disk.reopened().unit_hashes(sample.digest()).unwrap(), sample.hashes);
}

#[test]
fn wrong_units_and_wrong_hashes_never_reach_the_disk() {
    let (disk, sample) = (Disk::new(), sample());
    let claim = disk.store.claim(sample.digest(), sample.release.length).unwrap();
    let mut wrong = sample.hashes.to_bytes();
    wrong[33] ^= 1;
    assert!(matches!(claim.put_hashes(&wrong), Err(StoreError::Bytes { .. })));
    assert!(matches!(claim.put_hashes(&wrong[32..]), Err(StoreError::Bytes { .. })));
    assert!(!disk.file(&format!("{}.units", sample.digest())).exists());
    let hashes = claim.put_hashes(&sample.hashes.to_bytes()).unwrap();
    let part = claim.begin(hashes, 0).unwrap();
    let mut unit = sample.unit(2).to_vec();
    unit[77] ^= 0x20;
    assert!(matches!(part.write(2, &unit), Err(WriteError::Wrong(_))));
    assert!(matches!(part.write(2, sample.unit(3)), Err(WriteError::Wrong(_))));
    assert!(matches!(part.write(7, sample.unit(3)), Err(WriteError::Wrong(_))));
    assert_eq!(part.held(), 0);
    let bytes = fs::read(disk.file(&format!("{}.part", sample.digest()))).unwrap();
    assert!(bytes.iter().all(|byte| *byte == 0), "as long as it will be, and untouched");
    assert_eq!(bytes.len() as u64, sample.release.length);
}

#[test]
fn one_claim_per_artifact_and_only_possible_lengths() {
    let (disk, sample) = (Disk::new(), sample());
    let claim = disk.store.claim(sample.digest(), sample.release.length).unwrap();
    let second = disk.store.claim(sample.digest(), sample.release.length);
    assert!(matches!(second, Err(StoreError::InFlight { .. })));
    drop(claim);
    disk.store.claim(sample.digest(), sample.release.length).unwrap();
    for length in [0, u64::MAX] {
        let error = disk.store.claim(sample.digest(), length).unwrap_err();
        assert!(matches!(error, StoreError::Length { .. }));
    }
}

#[test]
fn space_is_checked_for_what_is_missing_only() {
    let free = Arc::new(std::sync::atomic::AtomicU64::new(u64::MAX));
    let shown = Arc::clone(&free);
    let free_now = move || shown.load(std::sync::atomic::Ordering::Relaxed);
    let (disk, sample) = (Disk::with(free_now), sample());
    let claim = disk.store.claim(sample.digest(), sample.release.length).unwrap();
    let needed = sample.release.length + 7 * 32 + 1_000;
    free.store(needed, std::sync::atomic::Ordering::Relaxed);
    claim.check_space(1_000).unwrap();
    free.store(needed - 1, std::sync::atomic::Ordering::Relaxed);
    let error = claim.check_space(1_000).unwrap_err();
    assert!(matches!(error, StoreError::NoSpace { .. }), "{error}");
    // Preallocated space is not required twice.
    free.store(u64::MAX, std::sync::atomic::Ordering::Relaxed);
    let hashes = claim.put_hashes(&sample.hashes.to_bytes()).unwrap();
    let part = claim.begin(hashes, 0).unwrap();
    Part::claim_space(&Arc::downgrade(&part)).unwrap();
    free.store(2_000, std::sync::atomic::Ordering::Relaxed);
    claim.check_space(1_000).unwrap();
}

#[test]
fn collection_spares_what_is_kept_and_what_is_in_flight() {
    let disk = Disk::new();
    let [kept, gone, flying, left] =
        ["kept", "gone", "flying", "left"].map(|seed| Sample::new(seed, 2 * UNIT));
    disk.hold(&kept);
    disk.hold(&gone);
    let begin = |sample: &Sample| {
        let claim = disk.store.claim(sample.digest(), sample.release.length).unwrap();
        let hashes = claim.put_hashes(&sample.hashes.to_bytes()).unwrap();
        let part = claim.begin(hashes, 0).unwrap();
        Part::claim_space(&Arc::downgrade(&part)).unwrap();
        (part, claim)
    };
    let in_flight = begin(&flying);
    drop(begin(&left));
    fs::write(disk.file("a-file-of-a-person"), "x").unwrap();
    let collected = disk.store.collect(&BTreeSet::from([kept.digest().clone()])).unwrap();
    assert_eq!(collected.digests, BTreeSet::from([gone.digest().clone(), left.digest().clone()]));
    assert!(collected.bytes >= 4 * UNIT as u64, "{collected:?}");
    assert_eq!(disk.store.held(), [kept.digest().clone()]);
    disk.assert_holds(&kept);
    let mut names: Vec<_> = fs::read_dir(disk.file(""))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    let (k, f) = (kept.digest(), flying.digest());
    let mut expected = vec![
        "a-file-of-a-person".to_owned(),
        k.to_string(),
        format!("{k}.units"),
        format!("{f}.part"),
        format!("{f}.units"),
    ];
    expected.sort();
    assert_eq!(names, expected);
    drop(in_flight);
}

#[test]
fn what_is_ordered_stays_however_fetches_and_collections_meet() {
    let disk = Disk::new();
    let [running, last_good] = ["running", "last good"].map(|seed| Sample::new(seed, 2 * UNIT));
    disk.hold(&running);
    disk.hold(&last_good);
    // The collector's view does not include what is fetched meanwhile.
    let keep = BTreeSet::from([running.digest().clone(), last_good.digest().clone()]);
    let ended = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                    disk.store.collect(&keep).unwrap();
                }
            });
        }
        for n in 0..40 {
            let sample = Sample::new(&format!("new {n}"), 3 * UNIT + n);
            disk.store.set_ordered([sample.digest().clone()].into());
            disk.hold(&sample);
            assert!(disk.store.is_whole(sample.digest()));
            assert_eq!(*disk.store.unit_hashes(sample.digest()).unwrap(), sample.hashes);
            disk.assert_holds(&sample);
        }
        ended.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    disk.assert_holds(&running);
    disk.assert_holds(&last_good);
    // No longer ordered, and in no one's `keep`.
    disk.store.set_ordered(BTreeSet::new());
    disk.store.collect(&keep).unwrap();
    let mut held = disk.store.held();
    held.sort();
    assert_eq!(held, Vec::from_iter(keep));
    assert_eq!(disk.reopened().held().len(), 2);
}

#[test]
fn whole_files_are_trusted_by_name_and_length_and_repaired_when_they_do_not_fit() {
    let (disk, sample) = (Disk::new(), sample());
    disk.hold(&sample);
    let whole = disk.file(sample.digest().as_str());
    let units = disk.file(&format!("{}.units", sample.digest()));
    let part = disk.file(&format!("{}.part", sample.digest()));
    // The hashes can be computed again.
    fs::remove_file(&units).unwrap();
    assert_eq!(disk.reopened().held(), [sample.digest().clone()]);
    assert_eq!(fs::read(&units).unwrap(), sample.hashes.to_bytes());
    fs::write(&units, "short").unwrap();
    assert_eq!(disk.reopened().held(), [sample.digest().clone()]);
    assert_eq!(fs::read(&units).unwrap(), sample.hashes.to_bytes());
    // A torn whole file (never ours) is not an artifact.
    let mut torn = sample.bytes[..3 * UNIT].to_vec();
    torn[UNIT + 1] ^= 1;
    fs::write(&whole, &torn).unwrap();
    let store = disk.reopened();
    assert!(store.held().is_empty() && !whole.exists() && part.exists());
    // It costs only what is missing, and the damaged unit.
    fs::write(&units, sample.hashes.to_bytes()).unwrap();
    let claim = store.claim(sample.digest(), sample.release.length).unwrap();
    let resumed = claim.begin(claim.hashes().unwrap().unwrap(), 0).unwrap();
    assert_eq!(resumed.held(), 2);
    for unit in [1, 3, 4, 5, 6] {
        resumed.write(unit, sample.unit(unit)).unwrap();
    }
    claim.finish(&resumed).unwrap();
    disk.assert_holds(&sample);
}

#[test]
fn what_a_crash_left_half_written_is_swept() {
    let disk = Disk::new();
    let aside = disk.file(".unfinished-x.units");
    fs::write(&aside, "half").unwrap();
    disk.reopened();
    assert!(!aside.exists());
}
