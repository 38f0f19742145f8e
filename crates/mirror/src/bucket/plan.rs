//! What has to be sent, and in which order: pure.
//!
//! Readers begin with `timestamp.json` and follow it: to the snapshot, to the targets, to manifests
//! and artifacts. So everything is written in the opposite order, stage by stage, and a reader who
//! comes in between sees the repository as it was before.

use std::collections::BTreeMap;

use cohort_core::ids::Digest;
use serde::Deserialize;

use crate::files::hash_in_name;
use crate::request::is_relative;

/// Where readers begin; written last, by itself.
pub(super) const TIMESTAMP: &str = "metadata/timestamp.json";

/// The first root: what tells one repository from another.
pub(super) const FIRST_ROOT: &str = "metadata/1.root.json";

/// Stages before the timestamp.
pub(super) const STAGES: usize = 4;

/// A file of the repository here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LocalFile {
    /// Below the repository.
    pub(super) path: String,
    /// In bytes.
    pub(super) length: u64,
}

/// What a file is, by its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind<'a> {
    /// An artifact, named by its root.
    Blob(&'a str),
    /// Its unit hashes.
    Units(&'a str),
    /// A manifest or a channel; its name holds its SHA-256.
    Target(&'a str),
    /// Signed lists, each under a number of its own.
    Versioned,
    /// Whose signatures count. After the lists, so that a new key never has to wait long for the
    /// timestamp that it signed.
    Root,
    /// Where readers begin.
    Timestamp,
}

impl<'a> Kind<'a> {
    /// Nothing for what is no file of a repository.
    pub(super) fn of(path: &'a str) -> Option<Self> {
        if !is_relative(path) {
            return None;
        }
        let (folder, name) = path.split_once('/')?;
        let is_digest = |name: &str| name.parse::<Digest>().is_ok();
        match folder {
            "blobs" => match name.strip_suffix(".units") {
                Some(root) => is_digest(root).then_some(Self::Units(root)),
                None => is_digest(name).then_some(Self::Blob(name)),
            },
            "targets" => hash_in_name(path).map(Self::Target),
            "metadata" if name.contains('/') || !name.ends_with(".json") => None,
            "metadata" if path == TIMESTAMP => Some(Self::Timestamp),
            "metadata" if name == "root.json" || name.ends_with(".root.json") => Some(Self::Root),
            "metadata" => Some(Self::Versioned),
            _ => None,
        }
    }

    fn stage(self) -> Option<usize> {
        match self {
            Self::Blob(_) | Self::Units(_) => Some(0),
            Self::Target(_) => Some(1),
            Self::Versioned => Some(2),
            Self::Root => Some(3),
            Self::Timestamp => None,
        }
    }

    /// What caches in between may do with it.
    pub(super) fn cache_control(self, path: &str) -> &'static str {
        match self {
            Self::Timestamp => "no-cache",
            _ if path == "metadata/root.json" => "no-cache",
            _ => "public, max-age=31536000, immutable",
        }
    }

    /// What it is in HTTP's words.
    pub(super) fn content_type(self) -> &'static str {
        match self {
            Self::Blob(_) | Self::Units(_) => "application/octet-stream",
            Self::Target(_) | Self::Versioned | Self::Root | Self::Timestamp => "application/json",
        }
    }
}

/// What of the repository here the bucket has not got, by stages: each begins when the one before
/// has arrived.
///
/// What is named by its content is there when something of its length is: stores show no half
/// files. What is named by a number may come from a repository that was restored from a backup and
/// lived on differently, so that what `current` names is sent whenever the timestamp is another.
pub(super) fn stages(
    local: Vec<LocalFile>,
    there: &BTreeMap<String, u64>,
    current: &[String],
    all: bool,
) -> [Vec<LocalFile>; STAGES] {
    let mut stages: [Vec<LocalFile>; STAGES] = Default::default();
    for file in local {
        let Some(stage) = Kind::of(&file.path).and_then(Kind::stage) else { continue };
        let is_there = there.get(&file.path) == Some(&file.length);
        if all || !is_there || current.contains(&file.path) {
            stages[stage].push(file);
        }
    }
    stages
}

/// What is read of a timestamp or snapshot here: only numbers, and only to tell older from newer.
/// Readers check signatures.
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

/// The number of a signed file; 0 for what is none, and is older than everything.
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
mod plan_test {
    use std::collections::BTreeMap;

    use super::{Kind, LocalFile, next_in_chain, stages, version_of};

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
        // What is there in its length is not sent again, unless it is wanted so.
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
    fn only_files_of_a_repository_are_sent() {
        for strange in [
            "repository.json",
            "keys/timestamp.pem",
            "blobs/timestamp.pem",
            "blobs/.1-1",
            "metadata/.new",
            "metadata/notes.txt",
            "metadata/a/b.json",
            "targets/apps/web/manifest.json",
            "targets/../keys/root.pem",
        ] {
            assert_eq!(Kind::of(strange), None, "{strange}");
        }
    }

    #[test]
    fn numbers_are_read_and_nothing_else() {
        let timestamp =
            br#"{"signed": {"version": 12, "meta": {"snapshot.json": {"version": 9}}}}"#;
        assert_eq!(version_of(timestamp), 12);
        let next = next_in_chain(timestamp, "snapshot");
        assert_eq!(next.as_deref(), Some("metadata/9.snapshot.json"));
        assert_eq!(next_in_chain(timestamp, "targets"), None);
        assert_eq!(version_of(b"<html>"), 0);
        assert_eq!(next_in_chain(b"{}", "snapshot"), None);
    }
}
