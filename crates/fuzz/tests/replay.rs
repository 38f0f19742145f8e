//! The corpora, through their targets: whatever a fuzzer once found stays mended.

use std::collections::BTreeSet;
use std::fs;
use std::panic::catch_unwind;
use std::path::PathBuf;

use cohort_fuzz::{TARGETS, find};
use proptest::prelude::*;

/// Largest corpus of a target, in bytes: together they are played in seconds.
const CORPUS_BYTES_MAX: u64 = 200 << 10;

fn corpora() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "corpus"].iter().collect()
}

fn files(folder: &std::path::Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

#[test]
fn every_target_has_a_corpus_and_every_corpus_a_target() {
    let name = |path: &PathBuf| path.file_name().expect("a name").to_string_lossy().into_owned();
    let folders: BTreeSet<String> = files(&corpora()).iter().map(name).collect();
    let targets: BTreeSet<String> = TARGETS.iter().map(|it| it.name.to_owned()).collect();
    assert_eq!(folders, targets, "crates/fuzz/corpus and TARGETS differ");
    for target in TARGETS {
        let inputs = files(&corpora().join(target.name));
        assert!(!inputs.is_empty(), "{}: no seeds", target.name);
        let bytes: u64 = inputs.iter().map(|it| fs::metadata(it).expect("a file").len()).sum();
        assert!(bytes <= CORPUS_BYTES_MAX, "{}: {bytes} bytes", target.name);
    }
}

#[test]
fn every_input_keeps_its_property() {
    let mut broken = Vec::new();
    for target in TARGETS {
        for path in files(&corpora().join(target.name)) {
            let bytes = fs::read(&path).expect("a file");
            if catch_unwind(|| (target.run)(&bytes)).is_err() {
                broken.push(path);
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// The same scripts that the fuzzer writes, by chance.
    #[test]
    fn no_message_of_a_hostile_peer_stops_a_member(
        script in proptest::collection::vec(any::<u8>(), 1..1_500),
    ) {
        (find("member").expect("a target").run)(&script);
    }
}
