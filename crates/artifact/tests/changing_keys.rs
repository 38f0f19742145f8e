//! Keys that are replaced, added and removed while servers read.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::num::NonZeroU64;
use std::path::Path;

use cohort_artifact::Lifetimes;
use cohort_artifact::{
    KeyChange, KeyChangeError, KeyRole, Keys, Needs, Repository, RepositoryError, SigningKey,
    WorkingCopy,
};
use cohort_core::refused::{Role, WhyRefused};
use common::{Fixture, folder};

mod common;

/// Replaces a role's only key; the old one of a role other than root is lost.
async fn rotate(fixture: &mut Fixture, role: KeyRole) -> u64 {
    let new = SigningKey::generate().unwrap();
    let change = KeyChange::Replace { role, old: None, new: new.clone() };
    if role == KeyRole::Root {
        fixture.keys.root.push(new);
    } else {
        *fixture.keys.of_mut(role) = vec![new];
    }
    let version = fixture.repository.change_keys(&fixture.keys, &change).await.unwrap();
    if role == KeyRole::Root {
        fixture.keys.root.remove(0);
    }
    version
}

#[tokio::test]
async fn every_key_is_replaced_and_a_reader_follows() {
    let mut fixture = Fixture::new().await;
    let mirror = folder(fixture.repository.dir());
    let always = fixture.reader("always", vec![mirror.clone()]).await;
    let slept = fixture.reader("slept", vec![mirror.clone()]).await;
    assert_eq!(fixture.latest(&slept).await.unwrap(), "1.0.0");
    let mut releases = vec![("1.1.0", KeyRole::Timestamp), ("1.2.0", KeyRole::Snapshot)];
    releases.extend([("1.3.0", KeyRole::Targets), ("1.4.0", KeyRole::Root)]);
    for (nth, (version, role)) in releases.into_iter().enumerate() {
        assert_eq!(rotate(&mut fixture, role).await, nth as u64 + 2);
        assert!(always.refresh().await.unwrap(), "{role}: the same releases, signed again");
        fixture.publish(version).await;
        assert_eq!(fixture.latest(&always).await.unwrap(), version);
    }
    assert_eq!(fixture.latest(&slept).await.unwrap(), "1.4.0", "off for four changes");
    let new = fixture.reader("new", vec![mirror]).await;
    assert_eq!(fixture.latest(&new).await.unwrap(), "1.4.0", "from the first root");
    assert_eq!(new.root_hashes().len(), 5);
}

/// What a server that reaches no mirror gets from the others of its group.
#[tokio::test]
async fn a_reader_that_slept_follows_by_what_a_peer_knows() {
    let mut fixture = Fixture::new().await;
    let peer = fixture.reader("peer", vec![folder(fixture.repository.dir())]).await;
    let slept = fixture.reader("slept", vec![folder(Path::new("/nonexistent"))]).await;
    peer.refresh().await.unwrap();
    assert!(slept.accept_bundle(&peer.bundle().unwrap()).await.unwrap());
    for role in [KeyRole::Root, KeyRole::Timestamp, KeyRole::Targets] {
        rotate(&mut fixture, role).await;
    }
    peer.refresh().await.unwrap();
    let bundle = peer.bundle().unwrap();
    assert!(slept.accept_bundle(&bundle).await.unwrap());
    drop(slept);
    let again = fixture.reader("slept", Vec::new()).await;
    assert_eq!(again.bundle().unwrap(), bundle, "also after a restart");
}

#[tokio::test]
async fn a_replaced_key_signs_nothing_more() {
    for role in [KeyRole::Targets, KeyRole::Snapshot, KeyRole::Timestamp] {
        let mut fixture = Fixture::new().await;
        let stolen = fixture.keys.clone();
        let thief = fixture.copy("thief");
        let reader = fixture.reader("reader", vec![folder(fixture.repository.dir())]).await;
        rotate(&mut fixture, role).await;
        reader.refresh().await.unwrap();
        let error =
            fixture.repository.publish(&stolen, &fixture.request("6.6.6")).await.unwrap_err();
        assert!(matches!(error, RepositoryError::MissingKey { have: 0, .. }), "{role}: {error}");
        // In the repository as it was, which the thief has a mirror of.
        let thief = Repository::open(&thief).unwrap();
        thief.publish(&stolen, &fixture.request("6.6.6")).await.unwrap();
        let root = Path::new("metadata/2.root.json");
        fs::copy(fixture.repository.dir().join(root), thief.dir().join(root)).unwrap();
        for store in ["reader", "new"] {
            let fooled = fixture.reader(store, vec![folder(thief.dir())]).await;
            let refused = fixture.latest(&fooled).await.unwrap_err();
            assert!(matches!(refused, WhyRefused::WrongSignature { .. }), "{role}: {refused:?}");
        }
    }
}

#[tokio::test]
async fn a_stolen_root_key_alone_makes_no_root_that_counts_after_its_change() {
    let mut fixture = Fixture::new().await;
    let stolen = fixture.keys.clone();
    let thief = Repository::open(&fixture.copy("thief")).unwrap();
    let reader = fixture.reader("reader", vec![folder(fixture.repository.dir())]).await;
    rotate(&mut fixture, KeyRole::Root).await;
    reader.refresh().await.unwrap();
    // Another second root, signed by the first's key, and a third.
    let mut own = stolen.clone();
    for role in [KeyRole::Targets, KeyRole::Timestamp] {
        let new = SigningKey::generate().unwrap();
        *own.of_mut(role) = vec![new.clone()];
        let change = KeyChange::Replace { role, old: None, new };
        thief.change_keys(&own, &change).await.unwrap();
    }
    let fooled = fixture.reader("reader", vec![folder(thief.dir())]).await;
    let refused = fixture.latest(&fooled).await.unwrap_err();
    assert_eq!(refused, WhyRefused::WrongSignature { role: Role::Root });
}

#[tokio::test]
async fn a_threshold_needs_as_many_keys() {
    let mut fixture = Fixture::new().await;
    let reader = fixture.reader("reader", vec![folder(fixture.repository.dir())]).await;
    for role in [KeyRole::Targets, KeyRole::Root] {
        let alone = fixture.keys.clone();
        let count = KeyChange::Threshold { role, count: NonZeroU64::new(2).unwrap() };
        let error = fixture.repository.change_keys(&alone, &count).await.unwrap_err();
        assert!(
            matches!(error, RepositoryError::KeyChange(KeyChangeError::TooFew { keys: 1, .. })),
            "{error}"
        );
        let key = SigningKey::generate().unwrap();
        fixture.keys.of_mut(role).push(key.clone());
        let add = KeyChange::Add { role, key };
        fixture.repository.change_keys(&fixture.keys, &add).await.unwrap();
        fixture.repository.change_keys(&fixture.keys, &count).await.unwrap();
        let error = match role {
            KeyRole::Targets => {
                let publish = fixture.repository.publish(&alone, &fixture.request("1.1.0")).await;
                publish.unwrap_err()
            }
            _ => {
                let id = fixture.keys.targets[0].id();
                let change = KeyChange::Remove { role: KeyRole::Targets, old: id };
                let keys = Keys { root: alone.root.clone(), ..fixture.keys.clone() };
                let one = KeyChange::Threshold {
                    role: KeyRole::Targets,
                    count: NonZeroU64::new(1).unwrap(),
                };
                fixture.repository.change_keys(&fixture.keys, &one).await.unwrap();
                fixture.repository.change_keys(&keys, &change).await.unwrap_err()
            }
        };
        assert!(matches!(error, RepositoryError::MissingKey { have: 1, need: 2, .. }), "{error}");
        fixture.publish(&format!("2.{}.0", role as u32)).await;
        reader.refresh().await.unwrap();
    }
    let (version, roles) = fixture.repository.roles().unwrap();
    assert_eq!(version, 6);
    assert_eq!(roles.iter().map(|role| role.threshold).collect::<Vec<_>>(), [2, 1, 1, 1]);
    assert_eq!(roles.iter().map(|role| role.keys.len()).collect::<Vec<_>>(), [2, 2, 1, 1]);
    let two = KeyChange::Threshold { role: KeyRole::Timestamp, count: NonZeroU64::new(2).unwrap() };
    let error = fixture.repository.change_keys(&fixture.keys, &two).await.unwrap_err();
    assert!(matches!(error, RepositoryError::KeyChange(KeyChangeError::HubSignsAlone)), "{error}");
}

#[tokio::test]
async fn a_change_without_the_root_key_or_of_an_unknown_key_changes_nothing() {
    let fixture = Fixture::new().await;
    let before = common::bytes_below(fixture.repository.dir());
    let role = KeyRole::Targets;
    let new = SigningKey::generate().unwrap();
    let keys = Keys { root: Vec::new(), targets: vec![new.clone()], ..fixture.keys.clone() };
    let replace = KeyChange::Replace { role, old: None, new };
    let error = fixture.repository.change_keys(&keys, &replace).await.unwrap_err();
    assert!(matches!(error, RepositoryError::MissingKey { ref role, .. } if role == "root"));
    for old in ["", "abcdef0123", &fixture.keys.snapshot[0].id()] {
        let remove = KeyChange::Remove { role, old: old.to_owned() };
        let error = fixture.repository.change_keys(&fixture.keys, &remove).await.unwrap_err();
        assert!(matches!(error, RepositoryError::KeyChange(_)), "{error}");
    }
    let only = KeyChange::Remove { role, old: fixture.keys.targets[0].id() };
    let error = fixture.repository.change_keys(&fixture.keys, &only).await.unwrap_err();
    assert!(matches!(error, RepositoryError::KeyChange(KeyChangeError::TooFew { keys: 0, .. })));
    assert_eq!(common::bytes_below(fixture.repository.dir()), before);
}

async fn upload(hub: &Repository, bytes: &[u8]) -> Result<bool, RepositoryError> {
    let mut file = hub.incoming().unwrap();
    std::io::Write::write_all(&mut file, bytes).unwrap();
    hub.receive(Repository::KEY_CHANGE, file).await
}

/// A change made far from the hub, on a working copy.
#[tokio::test]
async fn a_change_is_uploaded_whole_and_only_if_the_old_root_signed_it() {
    let fixture = Fixture::new().await;
    let hub = &fixture.repository;
    let reader = fixture.reader("reader", vec![folder(hub.dir())]).await;
    let pull = async |name: &str| {
        let copy =
            WorkingCopy::pull(&fixture.path(name), &reader, &Needs::Names, Lifetimes::default())
                .await;
        copy.unwrap()
    };
    let (copy, late) = (pull("copy").await, pull("late").await);
    let change = async |copy: &WorkingCopy, role: KeyRole, keys: &Keys| {
        let new = SigningKey::generate().unwrap();
        let mut keys = keys.clone();
        *keys.of_mut(role) = vec![new.clone()];
        let change = KeyChange::Replace { role, old: None, new };
        copy.repository().change_keys(&keys, &change).await.unwrap();
        (copy.repository().signed_change().unwrap(), keys)
    };
    let (late, _) = change(&late, KeyRole::Snapshot, &fixture.keys).await;
    let (bytes, keys) = change(&copy, KeyRole::Targets, &fixture.keys).await;
    let before = common::bytes_below(hub.dir());
    // A stranger's keys; a part changed; a part left out.
    let mut value: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let own = value["targets"].as_str().unwrap().replace("1.0.0", "1.0.1");
    value["targets"] = own.into();
    for forged in [value.to_string().into_bytes(), b"{}".to_vec()] {
        let error = upload(hub, &forged).await.unwrap_err();
        assert!(matches!(error, RepositoryError::Refused { .. }), "{error}");
    }
    let stranger = {
        let other = Fixture::new().await;
        rotate_at(&other).await
    };
    let error = upload(hub, &stranger).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Refused { .. }), "{error}");
    let unchanged: Vec<_> = common::bytes_below(hub.dir())
        .into_iter()
        .filter(|(path, _)| !path.components().any(|part| part.as_os_str() == ".incoming"))
        .collect();
    assert_eq!(unchanged, before.into_iter().collect::<Vec<_>>());
    assert!(upload(hub, &bytes).await.unwrap());
    assert!(!upload(hub, &bytes).await.unwrap(), "a lost answer: sent again");
    assert!(upload(hub, &late).await.is_err(), "of two changes at once, the second starts over");
    hub.publish(&keys, &fixture.request("1.1.0")).await.unwrap();
    assert_eq!(fixture.latest(&reader).await.unwrap(), "1.1.0");
}

async fn rotate_at(other: &Fixture) -> Vec<u8> {
    let new = SigningKey::generate().unwrap();
    let mut keys = other.keys.clone();
    keys.targets = vec![new.clone()];
    let change = KeyChange::Replace { role: KeyRole::Targets, old: None, new };
    other.repository.change_keys(&keys, &change).await.unwrap();
    other.repository.signed_change().unwrap()
}
