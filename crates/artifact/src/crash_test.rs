//! A publisher that dies between any two steps.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::client::{ClientLimits, MirrorClient};
use crate::steps::Faults;
use crate::{
    KeyChange, KeyRole, Keys, Lifetimes, Mirror, PublishRequest, Repository, SigningKey,
    TrustOptions, TrustedRepository, UnitHashes, blob_path, units_path,
};

impl Faults {
    pub(crate) fn point(&self) -> io::Result<()> {
        let Some(left) = &self.points_left else { return Ok(()) };
        match left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other("the test let the publisher die here")),
        }
    }
}

struct Fixture {
    folder: tempfile::TempDir,
    keys: Keys,
    repository: Repository,
}

impl Fixture {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::generate().unwrap();
        let dir = folder.path().join("repository");
        let repository = Repository::create(&dir, &keys, Lifetimes::default()).await.unwrap();
        Self { folder, keys, repository }
    }

    fn request(&self, version: &str) -> PublishRequest {
        let source = self.folder.path().join(version);
        fs::create_dir_all(&source).unwrap();
        fs::write(source.join("app"), format!("release {version} ").repeat(9000)).unwrap();
        let (app, version) = ("web".parse().unwrap(), version.parse().unwrap());
        let mut request =
            PublishRequest::new(&source, app, version, "linux/amd64".parse().unwrap());
        request.channel = Some("stable".parse().unwrap());
        request
    }

    fn dying_after(&self, points: u32) -> Repository {
        let mut repository = Repository::open(self.repository.dir()).unwrap();
        repository.faults.points_left = Some(Arc::new(AtomicU32::new(points)));
        repository
    }

    async fn reader(&self, store: &str) -> TrustedRepository {
        TrustedRepository::open(TrustOptions {
            root: std::fs::read(self.repository.dir().join("metadata/root.json")).unwrap(),
            store: self.folder.path().join(store),
            mirrors: vec![Mirror::Folder(self.repository.dir().to_owned())],
            client: MirrorClient::new(ClientLimits::default()).unwrap(),
        })
        .await
        .unwrap()
    }
}

/// What a reader sees: the channel's version, with every byte there and correct.
async fn consistent_version(reader: &TrustedRepository, dir: &Path) -> String {
    let (app, channel) = ("web".parse().unwrap(), "stable".parse().unwrap());
    let platform = "linux/amd64".parse().unwrap();
    let manifest = reader.latest(&app, &channel, &platform).await.unwrap();
    let bytes = fs::read(dir.join(blob_path(&manifest.root))).unwrap();
    assert_eq!(bytes.len() as u64, manifest.length);
    let units = fs::read(dir.join(units_path(&manifest.root))).unwrap();
    let units = UnitHashes::parse_for(&units, &manifest.root, manifest.length).unwrap();
    assert!(units.verified_units(&mut bytes.as_slice()).unwrap().into_iter().all(|right| right));
    manifest.version.to_string()
}

fn unfinished_below(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let count = |path: std::path::PathBuf| {
        let unfinished = path.file_name().unwrap().to_str().unwrap().starts_with(".unfinished");
        usize::from(unfinished) + if path.is_dir() { unfinished_below(&path) } else { 0 }
    };
    entries.map(count).sum()
}

#[tokio::test]
async fn a_reader_sees_the_state_before_or_after_whenever_the_publisher_dies() {
    let fixture = Fixture::new().await;
    let dir = fixture.repository.dir().to_owned();
    fixture.repository.publish(&fixture.keys, &fixture.request("1.0.0")).await.unwrap();
    let reader = fixture.reader("store").await;
    assert_eq!(consistent_version(&reader, &dir).await, "1.0.0");

    let mut running = "1.0.0".to_owned();
    let mut seen = (false, false);
    for points in 0.. {
        let version = format!("1.1.{points}");
        let request = fixture.request(&version);
        let dying = fixture.dying_after(points);
        let died = dying.publish(&fixture.keys, &request).await.is_err();
        let found = consistent_version(&reader, &dir).await;
        assert!(found == running || found == version, "{found} after {points} points");
        let fresh = fixture.reader(&format!("fresh-{points}")).await;
        assert_eq!(consistent_version(&fresh, &dir).await, found, "a new reader sees the same");
        seen.0 |= died && found == running;
        seen.1 |= died && found == version;
        // The next publisher continues, and completes what the dead one started.
        let published = fixture.repository.publish(&fixture.keys, &request).await.unwrap();
        assert_eq!(published.already_there, found == version);
        assert_eq!(consistent_version(&reader, &dir).await, version);
        assert_eq!(unfinished_below(&dir), 0, "files were left behind");
        running = version;
        if !died {
            assert!(points >= 21, "7 files of 3 points each, but only {points} were met");
            break;
        }
    }
    assert_eq!(seen, (true, true), "died both before and after the change took effect");
}

#[tokio::test]
async fn a_creation_that_was_cut_short_begins_again() {
    let folder = tempfile::tempdir().unwrap();
    let keys = Keys::generate().unwrap();
    let dir = folder.path().join("repository");
    Repository::create(&dir, &keys, Lifetimes::default()).await.unwrap();
    fs::remove_file(dir.join("metadata/timestamp.json")).unwrap();
    let other = Keys::generate().unwrap();
    Repository::create(&dir, &other, Lifetimes::default()).await.unwrap();
    assert!(Repository::create(&dir, &other, Lifetimes::default()).await.is_err());
    let expiries = Repository::open(&dir).unwrap().expiries().unwrap();
    assert!(
        expiries.nearest().1.as_second() - jiff::Timestamp::now().as_second() > 30 * 86_400,
        "all that runs lives a month without the hub"
    );
}

#[tokio::test]
async fn renewing_survives_dying_at_every_point() {
    let fixture = Fixture::new().await;
    fixture.repository.publish(&fixture.keys, &fixture.request("1.0.0")).await.unwrap();
    let reader = fixture.reader("store").await;
    for points in 0..4 {
        let dying = fixture.dying_after(points);
        let died = dying.renew_timestamp(&fixture.keys.timestamp).await.is_err();
        assert_eq!(died, points < 3);
        let faults = dying.faults.points_left.unwrap();
        assert_eq!(faults.load(Ordering::SeqCst), 0);
        assert_eq!(consistent_version(&reader, fixture.repository.dir()).await, "1.0.0");
    }
}

/// A change of keys that dies between any two steps is completed by the next signature.
#[tokio::test]
async fn changing_keys_survives_dying_at_every_point() {
    for role in [KeyRole::Root, KeyRole::Targets, KeyRole::Snapshot, KeyRole::Timestamp] {
        let mut last = false;
        for points in 0.. {
            let fixture = Fixture::new().await;
            fixture.repository.publish(&fixture.keys, &fixture.request("1.0.0")).await.unwrap();
            let reader = fixture.reader("store").await;
            assert_eq!(consistent_version(&reader, fixture.repository.dir()).await, "1.0.0");
            let (new, mut keys) = (SigningKey::generate().unwrap(), fixture.keys.clone());
            keys.of_mut(role).push(new.clone());
            let change = KeyChange::Replace { role, old: None, new };
            let dying = fixture.dying_after(points);
            let died = dying.change_keys(&keys, &change).await.is_err();
            let repository = &fixture.repository;
            repository.renew_timestamp_if_due(&keys.timestamp).await.unwrap();
            assert_eq!(consistent_version(&reader, repository.dir()).await, "1.0.0");
            repository.publish(&keys, &fixture.request("1.1.0")).await.unwrap();
            assert_eq!(consistent_version(&reader, repository.dir()).await, "1.1.0");
            if !died {
                last = true;
                break;
            }
        }
        assert!(last);
    }
}
