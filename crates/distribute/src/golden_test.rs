//! What servers send each other of an artifact, and what they store of it on disk.

use std::path::Path;

use cohort_base::golden::hold;

use crate::frame::{ALIVE, Frame};
use crate::testing::{Disk, Sample, UNIT};
use crate::{SubscribeRequest, UnitRun};

fn golden(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

#[test]
fn a_subscription_and_its_frames() {
    let run = |first, count| UnitRun { first, count };
    let requests =
        [vec![run(0, 1_024)], vec![run(0, 1), run(7, 2)]].map(|lacks| SubscribeRequest { lacks });
    hold(&golden("subscriptions.jsonl"), &requests);
    let unit = Frame::new(258, [Frame::room(258, 4), b"unit".to_vec()].concat());
    let alive = ALIVE.to_be_bytes();
    hold(&golden("frames.jsonl"), &[hex::encode(unit.bytes()), hex::encode(alive)]);
}

/// File names with our own content: hashes and counts of tries in full, of an artifact only its
/// length.
#[test]
fn the_folder_of_artifacts() {
    let (disk, sample) = (Disk::new(), Sample::new("golden", UNIT + 10));
    disk.hold(&sample);
    let arriving = Sample::new("arriving", 2 * UNIT);
    let claim = disk.store.claim(arriving.digest(), arriving.release.length).unwrap();
    let hashes = claim.put_hashes(&arriving.hashes.to_bytes()).unwrap();
    let part = claim.begin(hashes, 0).unwrap();
    part.write(1, arriving.unit(1)).unwrap();
    disk.store.put_tries(arriving.digest(), 1).unwrap();
    let files = std::fs::read_dir(disk.file("")).unwrap().map(|file| {
        let path = file.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        let ours = path.extension().is_some_and(|kind| kind == "units" || kind == "delta");
        let kept = if ours { hex::encode(&bytes) } else { format!("{} bytes", bytes.len()) };
        (path.file_name().unwrap().to_str().unwrap().to_owned(), kept)
    });
    let mut files: Vec<(String, String)> = files.collect();
    files.sort();
    hold(&golden("folder.jsonl"), &files);
}
