//! Removing releases and channels, here and at a hub.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::io::Write as _;
use std::time::Duration;

use cohort_artifact::{
    Lifetimes, Needs, ReleaseName, Repository, RepositoryError, WorkingCopy, blob_path,
};
use common::{Fixture, Server, app, bytes_below, intel, releases, stable, version};

fn named(text: &str) -> ReleaseName {
    ReleaseName { app: app(), version: version(text), platform: intel() }
}

async fn pull(fixture: &Fixture, server: &Server, name: &str, needs: Needs) -> WorkingCopy {
    let reader = fixture.reader(&format!("store-{name}"), vec![server.mirror.clone()]).await;
    WorkingCopy::pull(&fixture.path(name), &reader, &needs, Lifetimes::default()).await.unwrap()
}

async fn upload_all(hub: &Repository, copy: &WorkingCopy) -> Result<(), RepositoryError> {
    for path in copy.new_files().unwrap() {
        let mut file = hub.incoming().unwrap();
        file.write_all(&fs::read(copy.repository().dir().join(&path)).unwrap()).unwrap();
        hub.receive(path.to_str().unwrap(), file).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_removed_release_is_gone_and_its_version_does_not_come_back() {
    let fixture = Fixture::new().await;
    let repository = &fixture.repository;
    let first = fixture.repository.manifest_of(&named("1.0.0")).unwrap();
    let second = fixture.publish("1.1.0").await.manifest;
    let on_channel = repository.remove_releases(&fixture.keys, &[named("1.1.0")]).await;
    assert!(matches!(on_channel, Err(RepositoryError::OnChannel { .. })), "{on_channel:?}");
    repository.remove_releases(&fixture.keys, &[named("1.0.0")]).await.unwrap();
    assert_eq!(repository.releases().unwrap(), [named("1.1.0")]);
    let again = repository.publish(&fixture.keys, &fixture.request("1.0.0")).await;
    assert!(matches!(again, Err(RepositoryError::WasRemoved { .. })), "{again:?}");
    let missing = repository.remove_releases(&fixture.keys, &[named("1.0.0")]).await;
    assert!(matches!(missing, Err(RepositoryError::NoSuchRelease { .. })), "{missing:?}");

    let there = |root| repository.dir().join(blob_path(root)).exists();
    let nothing = repository.collect(Duration::from_secs(3600)).await.unwrap();
    assert_eq!((nothing.files, there(&first.root)), (0, true), "an upload may be under way");
    let freed = repository.collect(Duration::ZERO).await.unwrap();
    assert!(freed.bytes >= first.length, "{freed:?}");
    assert_eq!((there(&first.root), there(&second.root)), (false, true));
    for delta in &second.deltas {
        assert!(there(&delta.root), "servers may still have 1.0.0");
    }
    let again = repository.collect(Duration::ZERO).await.unwrap();
    assert_eq!(again.files, 0);

    // Readers, who had seen it all, go on.
    let server = Server::start(repository.dir());
    let reader = fixture.reader("reader", vec![server.mirror.clone()]).await;
    assert_eq!(fixture.latest(&reader).await.unwrap(), "1.1.0");
    fixture.publish("1.2.0").await;
    assert_eq!(fixture.latest(&reader).await.unwrap(), "1.2.0");
}

#[tokio::test]
async fn a_channel_that_returns_goes_on_where_it_ended() {
    let fixture = Fixture::new().await;
    let (repository, keys) = (&fixture.repository, &fixture.keys);
    fixture.publish("1.1.0").await;
    assert_eq!(repository.channels().unwrap()[0].serial, 2);
    repository.remove_channel(keys, &app(), &stable()).await.unwrap();
    assert_eq!(repository.channels().unwrap(), []);
    let missing = repository.remove_channel(keys, &app(), &stable()).await;
    assert!(matches!(missing, Err(RepositoryError::NoSuchChannel { .. })), "{missing:?}");
    let back = repository.set_channel(keys, &app(), &stable(), &version("1.0.0")).await.unwrap();
    assert_eq!(back.serial, 3, "not one that a replay could have");
}

/// The hub believes signatures, and takes no removal that is not signed.
#[tokio::test]
async fn a_hub_tells_a_removal_from_a_publisher_who_was_late() {
    let fixture = Fixture::new().await;
    let hub = &fixture.repository;
    let server = Server::start(hub.dir());
    fixture.publish("1.1.0").await;
    let late = pull(&fixture, &server, "late", Needs::Release(app(), version("2.0.0"))).await;
    let copy = pull(&fixture, &server, "copy", Needs::Names).await;
    copy.repository().remove_releases(&fixture.keys, &[named("1.0.0")]).await.unwrap();
    upload_all(hub, &copy).await.unwrap();
    assert_eq!(releases(hub).len(), 1);
    // Its list has the removed release, and not that it was removed.
    late.repository().publish(&fixture.keys, &fixture.request("2.0.0")).await.unwrap();
    // Versions follow the clock: a later one, as if it had taken its time.
    fixture.point_new_channel(late.repository()).await;
    let refused = upload_all(hub, &late).await;
    assert!(matches!(refused, Err(RepositoryError::Outdated)), "{refused:?}");
    let again = pull(&fixture, &server, "again", Needs::Release(app(), version("2.0.0"))).await;
    again.repository().publish(&fixture.keys, &fixture.request("2.0.0")).await.unwrap();
    upload_all(hub, &again).await.unwrap();
    assert_eq!(releases(hub).len(), 2);
    let gone = pull(&fixture, &server, "gone", Needs::Release(app(), version("1.0.0"))).await;
    let refused = gone.repository().publish(&fixture.keys, &fixture.request("1.0.0")).await;
    assert!(matches!(refused, Err(RepositoryError::WasRemoved { .. })), "{refused:?}");
    hub.collect(Duration::ZERO).await.unwrap();
    assert!(bytes_below(&hub.dir().join("blobs")).len() >= 4, "two artifacts with their units");
}
