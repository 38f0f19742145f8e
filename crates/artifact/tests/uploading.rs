//! Publishing to a repository on another machine.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::io::Write as _;
use std::path::Path;

use cohort_artifact::{
    Keys, Lifetimes, Needs, PublishRequest, Repository, RepositoryError, WorkingCopy,
};
use common::{Fixture, Server, app, bytes_below, releases, stable, version};

async fn pull(fixture: &Fixture, server: &Server, name: &str) -> WorkingCopy {
    let store = format!("store-{name}");
    let reader = fixture.reader(&store, vec![server.mirror.clone()]).await;
    let release = version("1.1.0");
    let folder = fixture.path(name);
    let needs = Needs::Release(app(), release);
    WorkingCopy::pull(&folder, &reader, &needs, Lifetimes::default()).await.unwrap()
}

async fn upload(hub: &Repository, relative: &str, bytes: &[u8]) -> Result<(), RepositoryError> {
    let mut file = hub.incoming().unwrap();
    file.write_all(bytes).unwrap();
    hub.receive(relative, file).await.map(|_| ())
}

async fn upload_all(hub: &Repository, copy: &WorkingCopy) -> Result<(), RepositoryError> {
    for path in copy.new_files().unwrap() {
        let bytes = fs::read(copy.repository().dir().join(&path)).unwrap();
        upload(hub, path.to_str().unwrap(), &bytes).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_release_is_signed_here_and_served_there() {
    let fixture = Fixture::new().await;
    let hub = &fixture.repository;
    let server = Server::start(hub.dir());
    let reader = fixture.reader("reader", vec![server.mirror.clone()]).await;
    let copy = pull(&fixture, &server, "copy").await;
    assert!(copy.new_files().unwrap().is_empty());
    copy.repository().publish(&fixture.keys, &fixture.request("1.1.0")).await.unwrap();
    let files = copy.new_files().unwrap();
    assert_eq!(files.len(), 7, "artifact, unit hashes, manifest, channel, three roles");
    assert_eq!(files.last().unwrap(), Path::new("metadata/timestamp.json"));
    // After each file but the last, readers still see the previous state.
    for (sent, path) in files.iter().enumerate() {
        assert_eq!(fixture.latest(&reader).await.unwrap(), "1.0.0", "after {sent} files");
        let bytes = fs::read(copy.repository().dir().join(path)).unwrap();
        upload(hub, path.to_str().unwrap(), &bytes).await.unwrap();
    }
    assert_eq!(fixture.latest(&reader).await.unwrap(), "1.1.0");
    let before = bytes_below(hub.dir());
    upload_all(hub, &copy).await.unwrap();
    assert_eq!(bytes_below(hub.dir()), before, "uploading again changes nothing");

    let copy = pull(&fixture, &server, "copy-2").await;
    let mut other = fixture.request("1.1.0");
    other.path = fixture.source("other");
    let error = copy.repository().publish(&fixture.keys, &other).await.unwrap_err();
    assert!(matches!(error, RepositoryError::AlreadyPublished { .. }), "{error}");
    let back = version("1.0.0");
    // The signed list alone shows that the version exists.
    copy.repository().set_channel(&fixture.keys, &app(), &stable(), &back).await.unwrap();
    upload_all(hub, &copy).await.unwrap();
    assert_eq!(fixture.latest(&reader).await.unwrap(), "1.0.0");
    assert_eq!(hub.channels().unwrap()[0].serial, 3);
}

#[tokio::test]
async fn of_two_publishers_at_once_the_second_publishes_again() {
    let fixture = Fixture::new().await;
    let hub = &fixture.repository;
    let server = Server::start(hub.dir());
    let (one, two) = (pull(&fixture, &server, "one").await, pull(&fixture, &server, "two").await);
    one.repository().publish(&fixture.keys, &fixture.request("1.1.0")).await.unwrap();
    two.repository().publish(&fixture.keys, &fixture.request("1.2.0")).await.unwrap();
    fixture.point_new_channel(two.repository()).await;
    upload_all(hub, &one).await.unwrap();
    let before = bytes_below(&hub.dir().join("metadata")).len();
    // Versions follow the clock: the file may even have the same name.
    let error = upload_all(hub, &two).await.unwrap_err();
    let refused = matches!(error, RepositoryError::Outdated | RepositoryError::Refused { .. });
    assert!(refused, "{error}");
    assert!(bytes_below(&hub.dir().join("metadata")).len() >= before);
    assert_eq!(releases(hub).len(), 2, "1.0.0 and 1.1.0: nothing was lost");
    let again = pull(&fixture, &server, "again").await;
    again.repository().publish(&fixture.keys, &fixture.request("1.2.0")).await.unwrap();
    upload_all(hub, &again).await.unwrap();
    assert_eq!(releases(hub).len(), 3);
}

#[tokio::test]
async fn whoever_may_upload_but_has_no_keys_changes_nothing() {
    let fixture = Fixture::new().await;
    let hub = &fixture.repository;
    let old = fixture.copy("old");
    fixture.publish("1.1.0").await;
    let server = Server::start(hub.dir());
    let reader = fixture.reader("reader", vec![server.mirror.clone()]).await;
    let before = bytes_below(hub.dir());
    let hash = "ab".repeat(32);
    for name in [
        "repository.json",
        "metadata/root.json",
        "metadata/2.root.json",
        "metadata/../timestamp.json",
        "metadata/.timestamp.json",
        "../x",
        "/etc/passwd",
        "targets/x",
        "blobs/x",
        "",
    ] {
        assert!(Repository::upload_bytes_max(name).is_none(), "{name}");
        assert!(upload(hub, name, b"{}").await.is_err(), "{name}");
    }
    let manifest = format!("targets/apps/web/1.1.0/linux~intel/{hash}.manifest.json");
    for name in [
        format!("blobs/{hash}"),
        format!("blobs/{hash}.units"),
        manifest,
        "metadata/99.targets.json".to_owned(),
        "metadata/99.snapshot.json".to_owned(),
        "metadata/timestamp.json".to_owned(),
    ] {
        assert!(Repository::upload_bytes_max(&name).is_some(), "{name}");
        let error = upload(hub, &name, b"{}").await.unwrap_err();
        assert!(matches!(error, RepositoryError::Refused { .. }), "{name}: {error}");
    }
    // Replaying something signed once, and signing with foreign keys.
    let replayed = fs::read(old.join("metadata/timestamp.json")).unwrap();
    let error = upload(hub, "metadata/timestamp.json", &replayed).await.unwrap_err();
    assert!(matches!(error, RepositoryError::Outdated), "{error}");
    let stranger = Keys::generate().unwrap();
    let dir = fixture.path("strange");
    let strange = Repository::create(&dir, &stranger, Lifetimes::default()).await.unwrap();
    let request = PublishRequest { channel: None, ..fixture.request("6.6.6") };
    strange.publish(&stranger, &request).await.unwrap();
    let timestamp = fs::read(dir.join("metadata/timestamp.json")).unwrap();
    let error = upload(hub, "metadata/timestamp.json", &timestamp).await.unwrap_err();
    let reason = cohort_base::chain(&error);
    assert!(reason.contains("timestamp key"), "{reason}");
    assert_eq!(bytes_below(hub.dir()), before);
    assert_eq!(fixture.latest(&reader).await.unwrap(), "1.1.0");

    // With the right keys, but leading to what is not here.
    let copy = pull(&fixture, &server, "copy").await;
    copy.repository().publish(&fixture.keys, &fixture.request("1.2.0")).await.unwrap();
    let files = copy.new_files().unwrap();
    for path in files.iter().filter(|path| !path.starts_with("blobs")) {
        let bytes = fs::read(copy.repository().dir().join(path)).unwrap();
        let received = upload(hub, path.to_str().unwrap(), &bytes).await;
        if path.ends_with("timestamp.json") {
            let reason = cohort_base::chain(&received.unwrap_err());
            assert!(reason.contains("which is not here"), "{reason}");
        } else {
            received.unwrap();
        }
    }
    assert_eq!(fixture.latest(&reader).await.unwrap(), "1.1.0");
    upload_all(hub, &copy).await.unwrap();
    assert_eq!(fixture.latest(&reader).await.unwrap(), "1.2.0");
    hub.sweep_incoming().unwrap();
    assert!(bytes_below(&hub.dir().join(".incoming")).is_empty());
}
