//! Which files to send, in which order. Pure.
//!
//! Readers start at `timestamp.json` and follow it to the snapshot, the targets, the manifests and
//! the artifacts. So everything is written in the opposite order, stage by stage; until the end,
//! readers see the old repository.

use std::collections::BTreeMap;

use cohort_artifact::RepositoryFile;
use serde::Deserialize;

/// Where readers start; written last, on its own.
pub(super) const TIMESTAMP: &str = "metadata/timestamp.json";

/// The first root, which identifies a repository.
pub(super) const FIRST_ROOT: &str = "metadata/1.root.json";

/// Stages before the timestamp.
pub(super) const STAGES: usize = 4;

/// A local file of the repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LocalFile {
    pub(super) path: String,
    pub(super) length: u64,
}

/// When a file is sent; `None` for the timestamp, which is written last, on its own.
fn stage_of(file: &RepositoryFile) -> Option<usize> {
    match file {
        RepositoryFile::Blob(_) | RepositoryFile::Units(_) => Some(0),
        RepositoryFile::Target(_) => Some(1),
        RepositoryFile::Targets(_) | RepositoryFile::Snapshot(_) => Some(2),
        // After the lists, so that a new key never waits long for the timestamp it signed.
        RepositoryFile::Root(_) => Some(3),
        RepositoryFile::Timestamp => None,
    }
}

/// The files that the bucket lacks, by stage; each stage starts when the previous one is complete.
///
/// A file named by its content is complete if its length matches: stores show no partial files. A
/// file named by a number may belong to a repository that was restored from a backup and diverged,
/// so the files in `current` are sent whenever the timestamp differs.
pub(super) fn stages(
    local: Vec<LocalFile>,
    there: &BTreeMap<String, u64>,
    current: &[String],
    all: bool,
) -> [Vec<LocalFile>; STAGES] {
    let mut stages: [Vec<LocalFile>; STAGES] = Default::default();
    for file in local {
        let Some(stage) = RepositoryFile::of(&file.path).and_then(|file| stage_of(&file)) else {
            continue;
        };
        let is_there = there.get(&file.path) == Some(&file.length);
        if all || !is_there || current.contains(&file.path) {
            stages[stage].push(file);
        }
    }
    stages
}

/// The part of a timestamp or snapshot that carries the version. Readers check signatures.
#[derive(Debug, Deserialize)]
struct Outer {
    signed: Inner,
}

#[derive(Debug, Deserialize)]
struct Inner {
    version: u64,
    #[serde(default)]
    meta: BTreeMap<String, Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    version: u64,
}

/// Version of a signed file; 0, older than any, for anything else.
pub(super) fn version_of(bytes: &[u8]) -> u64 {
    serde_json::from_slice(bytes).map_or(0, |outer: Outer| outer.signed.version)
}

/// The path of the next file in the chain: the timestamp's snapshot, the snapshot's targets.
pub(super) fn next_in_chain(bytes: &[u8], role: &str) -> Option<String> {
    let outer: Outer = serde_json::from_slice(bytes).ok()?;
    let version = outer.signed.meta.get(&format!("{role}.json"))?.version;
    Some(format!("metadata/{version}.{role}.json"))
}

#[cfg(test)]
#[path = "plan_test.rs"]
mod plan_test;
