//! Formats on disk and on the wire, each pinned by a file in `tests/golden`.

use std::collections::BTreeSet;
use std::fs;
use std::num::NonZeroU64;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::slice::from_ref;

use cohort_base::golden::hold;
use jiff::Timestamp;
use tough::TargetName;

use crate::metadata::{later, new_root, new_targets, sign, sign_chain, target_of};
use crate::remove::{REMOVED_SCHEMA, RemovedList};
use crate::repository::{SETTINGS_SCHEMA, Settings};
use crate::trust_state::{Bundle, State};
use crate::{
    ChannelPointer, Delta, Format, Keys, Lifetimes, MANIFEST_SCHEMA, Manifest, PackageFile,
    Protocols, Rollback, SigningKey, UNIT_BYTES, UnitHasher, UnitHashes, digest_of_bytes,
    no_passphrase,
};

fn golden(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests/golden", name].iter().collect()
}

fn then() -> Timestamp {
    "2026-01-02T03:04:05Z".parse().unwrap()
}

fn names(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn manifest() -> Manifest {
    Manifest {
        schema: MANIFEST_SCHEMA,
        app: "web".parse().unwrap(),
        version: "1.2.0".parse().unwrap(),
        platform: "linux/amd64".parse().unwrap(),
        format: Format::TarZst,
        length: 100_000,
        unit_bytes: UNIT_BYTES,
        root: digest_of_bytes(b"artifact"),
        unpacked_bytes: 300_000,
        entries: 7,
        deltas: vec![Delta {
            from: digest_of_bytes(b"older"),
            method: "segments-1".to_owned(),
            length: 1_000,
            root: digest_of_bytes(b"delta"),
        }],
        protocols: Protocols {
            reads: names(&["orders/1", "orders/2"]),
            writes: names(&["orders/2"]),
        },
        schemas: names(&["db/3"]),
        rollback: Rollback::Freeze,
        created_at: then(),
    }
}

#[test]
fn manifests() {
    let least = Manifest {
        format: Format::Tar,
        deltas: Vec::new(),
        protocols: Protocols::default(),
        schemas: BTreeSet::new(),
        rollback: Rollback::Revert,
        ..manifest()
    };
    let gzip = Manifest { format: Format::TarGz, rollback: Rollback::ForwardOnly, ..least.clone() };
    let all = [manifest(), least, gzip];
    hold(&golden("manifest.jsonl"), &all);
    for manifest in all {
        assert_eq!(Manifest::parse(&manifest.to_bytes()).unwrap(), manifest);
    }
}

#[test]
fn channels() {
    let (app, channel) = ("web".parse().unwrap(), "stable".parse().unwrap());
    let (version, set_at) = ("1.2.0".parse().unwrap(), then());
    let pointer = ChannelPointer { schema: 1, app, channel, version, serial: 3, set_at };
    hold(&golden("channel.jsonl"), from_ref(&pointer));
    let (app, platform) = (pointer.app.clone(), "linux/amd64".parse().unwrap());
    let removed = RemovedList {
        schema: REMOVED_SCHEMA,
        app,
        releases: [(platform, vec!["1.0.0".parse().unwrap()])].into(),
        channels: [("beta".parse().unwrap(), 4)].into(),
    };
    hold(&golden("removed.jsonl"), from_ref(&removed));
    assert_eq!(ChannelPointer::parse(&pointer.to_bytes()).unwrap(), pointer);
}

#[test]
fn settings_of_a_repository() {
    let settings = Settings { schema: SETTINGS_SCHEMA, lifetimes: Lifetimes::default() };
    hold(&golden("settings.jsonl"), &[settings]);
}

#[test]
fn what_a_reader_has_seen() {
    // Each file in a bundle names its own format version; the contents are pinned below.
    let [root, timestamp, snapshot, targets] =
        ["root", "timestamp", "snapshot", "targets"].map(|role| format!("signed {role}"));
    let bundle = Bundle { roots: vec![root], timestamp, snapshot, targets };
    hold(&golden("trust-bundle.jsonl"), from_ref(&bundle));
    hold(&golden("trust-state.jsonl"), &[State::new("ab".repeat(32), bundle)]);
}

#[test]
fn package_files() {
    let full = "rollback = \"freeze\"\nschemas = [\"db/3\"]\n[protocols]\nreads = [\"a/1\"]\n\
                writes = [\"a/1\"]\n[service]\ncommand = [\"bin/app\"]\n\
                [checks.smoke]\ncommand = [\"bin/smoke\"]\n";
    let read = [full, ""].map(|text| {
        let PackageFile { rollback, protocols, schemas, checks } =
            PackageFile::parse(text.as_bytes()).unwrap();
        let checks: Vec<_> = checks.into_keys().collect();
        (text.to_owned(), rollback, protocols, schemas, checks)
    });
    hold(&golden("package-file.jsonl"), &read);
}

#[test]
fn unit_hashes() {
    let held = [1, UNIT_BYTES as usize, 2 * UNIT_BYTES as usize + 5].map(|length| {
        let mut hasher = UnitHasher::default();
        hasher.update(&vec![7; length]);
        let units = hasher.finish().unwrap();
        (units.length(), units.root().clone(), hex::encode(units.to_bytes()))
    });
    hold(&golden("unit-hashes.jsonl"), &held);
    for (length, root, bytes) in held {
        UnitHashes::parse_for(&hex::decode(bytes).unwrap(), &root, length).unwrap();
    }
}

/// A key from a file as written by `cohort init`.
fn key(seed: u8) -> SigningKey {
    let mut pkcs8 = hex::decode("302e020100300506032b657004220420").unwrap();
    pkcs8.extend([seed; 32]);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    fs::write(&path, pem::encode(&pem::Pem::new("PRIVATE KEY", pkcs8))).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    SigningKey::load(&path, &no_passphrase).unwrap()
}

#[tokio::test]
async fn signed_metadata() {
    let [root, targets, snapshot, timestamp] = [1, 2, 3, 4].map(|seed| vec![key(seed)]);
    let keys = Keys { targets, snapshot, timestamp, root };
    let lifetimes = Lifetimes::default();
    let root = new_root(&keys, later(then(), lifetimes.root_s)).unwrap();
    let signed = sign(&root, root.clone(), &keys.root).await.unwrap();
    let mut targets = new_targets(then());
    let name = TargetName::new("channels/web/stable.json").unwrap();
    targets.targets.insert(name, target_of(b"channel"));
    let versions = [5, 6, 7].map(|version| NonZeroU64::new(version).unwrap());
    let chain = sign_chain(&root, &keys, targets, versions, &lifetimes, then()).await.unwrap();
    // As values, because the order of keys within a file is not part of the format.
    let files = [signed]
        .into_iter()
        .chain(chain)
        .map(|file| (file.name, serde_json::from_slice::<serde_json::Value>(&file.bytes).unwrap()));
    hold(&golden("signed-metadata.jsonl"), &files.collect::<Vec<_>>());
}
