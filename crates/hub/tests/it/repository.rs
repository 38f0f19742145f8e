//! The plain port, uploads, and the renewal of the timestamp.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cohort_artifact::{Keys, Lifetimes, PublishRequest, Repository};
use cohort_hub::{HubError, UploadError};
use cohort_identity::Role;
use cohort_wire::http::{Call, CallError};
use cohort_wire::hub::upload_path;

use crate::support::Running;

const BLOB: &str = "/blobs/abababababababababababababababababababababababababababababababab";

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[tokio::test]
async fn files_are_served_with_ranges_tags_and_lengths() {
    let hub = Running::start().await;
    let dir = hub.config.repository_dir();
    write(&dir.join(&BLOB[1..]), "0123456789");
    write(&dir.join("metadata/timestamp.json"), "{}");
    let whole = hub.plain("GET", BLOB, "").await;
    assert_eq!((whole.status, whole.text().as_str()), (200, "0123456789"));
    assert_eq!(whole.header("content-length"), Some("10"));
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    let tag = whole.header("etag").unwrap().to_owned();

    let head = hub.plain("HEAD", BLOB, "").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), Some("10"));

    let part = hub.plain("GET", BLOB, "Range: bytes=2-4\r\n").await;
    assert_eq!((part.status, part.text().as_str()), (206, "234"));
    assert_eq!(part.header("content-range"), Some("bytes 2-4/10"));
    assert_eq!(part.header("content-length"), Some("3"));
    let tail = hub.plain("GET", BLOB, "Range: bytes=-2\r\n").await;
    assert_eq!((tail.status, tail.text().as_str()), (206, "89"));
    let beyond = hub.plain("GET", BLOB, "Range: bytes=10-\r\n").await;
    assert_eq!(beyond.status, 416);
    assert_eq!(beyond.header("content-range"), Some("bytes */10"));
    let other = hub.plain("GET", BLOB, "Range: bytes=2-4\r\nIf-Range: \"old\"\r\n").await;
    assert_eq!((other.status, other.body.len()), (200, 10), "another file by now: the whole");
    let same = format!("Range: bytes=2-4\r\nIf-Range: {tag}\r\n");
    assert_eq!(hub.plain("GET", BLOB, &same).await.status, 206);

    let known = hub.plain("GET", BLOB, &format!("If-None-Match: {tag}\r\n")).await;
    assert_eq!((known.status, known.body.len()), (304, 0));
    let changing = hub.plain("GET", "/metadata/timestamp.json", "").await;
    assert_eq!(changing.header("cache-control"), Some("no-cache"));
    assert_eq!(changing.header("content-type"), Some("application/json"));
    hub.stop().await;
}

#[tokio::test]
async fn nothing_but_the_repository_is_served() {
    let hub = Running::start().await;
    let dir = hub.config.repository_dir();
    write(&dir.join("keys/root.pem"), "secret");
    write(&dir.join("secret.pem"), "secret");
    write(&dir.join("blobs/.unfinished"), "secret");
    std::os::unix::fs::symlink(hub.config.authority_dir(), dir.join("blobs/out")).unwrap();
    std::os::unix::fs::symlink(
        hub.config.authority_dir().join("ca-key.pem"),
        dir.join("blobs/key"),
    )
    .unwrap();
    for path in [
        "/keys/root.pem",
        "/secret.pem",
        "/blobs/.unfinished",
        "/blobs/out/ca-key.pem",
        "/blobs/key",
        "/blobs/../keys/root.pem",
        "/blobs/%2e%2e/keys/root.pem",
        "/blobs//ab",
        "/blobs/",
        "/blobs",
        "/",
        "/../data/authority/ca-key.pem",
    ] {
        let answer = hub.plain("GET", path, "").await;
        assert!(matches!(answer.status, 400 | 404), "{path}: {}", answer.status);
        assert!(!answer.text().contains("secret") && !answer.text().contains("PRIVATE"), "{path}");
    }
    for method in ["PUT", "POST", "DELETE"] {
        let answer = hub.plain(method, BLOB, "Content-Length: 0\r\n").await;
        assert_eq!(answer.status, 405, "{method}");
    }
    assert_eq!(hub.plain("GET", "/livez", "").await.status, 200);
    assert_eq!(hub.plain("GET", "/readyz", "").await.status, 200);
    let metrics = hub.plain("GET", "/metrics", "").await;
    assert!(metrics.text().contains("cohort_hub_registry_revision "));
    hub.stop().await;
}

#[tokio::test]
async fn keys_below_the_repository_are_a_mistake_that_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = cohort_hub::HubConfig::new(folder.path());
    config.repository_dir = Some(folder.path().to_owned());
    let error = cohort_base::chain(&cohort_hub::Hub::start(config).await.err().unwrap());
    assert!(error.contains("repository_dir"), "{error}");
}

#[tokio::test]
async fn the_timestamp_is_renewed_before_it_ends() {
    let hub = Running::start_with(|config| config.renew_interval_s = 1).await;
    let keys_dir = hub.config.timestamp_key().parent().unwrap().to_owned();
    let keys = Keys::create(&keys_dir, &keys_dir, None).unwrap();
    let lifetimes = Lifetimes { timestamp_s: 4, ..Lifetimes::default() };
    let dir = hub.config.repository_dir();
    let repository = Repository::create(&dir, &keys, lifetimes).await.unwrap();
    let first = repository.expiries().unwrap().timestamp;
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while Repository::open(&dir).unwrap().expiries().unwrap().timestamp <= first {
        assert!(tokio::time::Instant::now() < deadline, "the timestamp was not renewed");
        tokio::task::yield_now().await;
    }
    hub.stop().await;
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Without the repository's keys, a publisher can store files that match their names, and no more.
#[tokio::test]
async fn a_publisher_without_keys_fills_no_more_than_its_quota() {
    let hub = Running::start_with(|config| config.unpublished_bytes_max = 130_000).await;
    let keys = Keys::generate().unwrap();
    let served = hub.config.repository_dir();
    Repository::create(&served, &keys, Lifetimes::default()).await.unwrap();
    let thief = hub.client(Role::Publisher, "thief");
    let put = |name: String, bytes: Vec<u8>| {
        thief.send(Call::new(http::Method::PUT, upload_path(&name)).bytes(bytes))
    };
    let junk = |byte: u8| {
        let bytes = vec![byte; 40_000];
        (format!("targets/web/{}.json", cohort_identity::sha256_hex(&bytes)), bytes)
    };
    for byte in [1, 2, 1] {
        let (name, bytes) = junk(byte);
        put(name, bytes).await.expect("those that are here count once");
    }
    let (name, bytes) = junk(3);
    put(name, bytes).await.unwrap();
    let (name, bytes) = junk(5);
    let full = put(name, bytes).await.unwrap_err();
    assert_eq!((full.status, full.kind.as_str()), (503, "quota"), "{full}");
    // The timestamp that is there already, which needs no keys.
    let timestamp = std::fs::read(served.join("metadata/timestamp.json")).unwrap();
    put("metadata/timestamp.json".to_owned(), timestamp).await.unwrap();
    let (name, bytes) = junk(5);
    assert_eq!(put(name, bytes).await.unwrap_err().kind, "quota");
    // Others publish as before.
    let publisher = hub.client(Role::Publisher, "ci");
    let (name, bytes) = junk(4);
    let call = Call::new(http::Method::PUT, upload_path(&name)).bytes(bytes);
    publisher.send(call).await.unwrap();
    hub.stop().await;
}

/// The files that a publisher has to send, in order.
fn new_files(dir: &Path, there: &Path) -> Vec<PathBuf> {
    fn walk(dir: &Path, below: &Path, found: &mut Vec<PathBuf>) {
        for entry in std::fs::read_dir(dir.join(below)).unwrap() {
            let entry = entry.unwrap();
            let name = below.join(entry.file_name());
            if entry.path().is_dir() {
                walk(dir, &name, found);
            } else {
                found.push(name);
            }
        }
    }
    let mut found = Vec::new();
    for folder in ["blobs", "targets", "metadata"] {
        walk(dir, Path::new(folder), &mut found);
    }
    let timestamp = Path::new("metadata/timestamp.json");
    found.retain(|name| !there.join(name).exists() && name != timestamp);
    found.push(timestamp.to_owned());
    found
}

#[tokio::test]
async fn a_release_is_uploaded_and_served() {
    let hub = Running::start().await;
    let publisher = hub.client(Role::Publisher, "ci");
    let put = |name: &str, bytes: Vec<u8>| {
        let call = Call::new(http::Method::PUT, upload_path(name)).bytes(bytes);
        publisher.send(call)
    };
    let early = put("metadata/timestamp.json", b"{}".to_vec()).await.unwrap_err();
    assert_eq!(early.status, 409, "there is no repository yet: {early}");
    let keys = Keys::generate().unwrap();
    let served = hub.config.repository_dir();
    Repository::create(&served, &keys, Lifetimes::default()).await.unwrap();

    let local = tempfile::tempdir().unwrap();
    let dir = local.path().join("copy");
    copy_folder(&served, &dir);
    let app = local.path().join("app");
    write(&app.join("run.sh"), "#!/bin/sh\nexit 0\n");
    let mut request = PublishRequest::new(
        &app,
        "web".parse().unwrap(),
        "1.0.0".parse().unwrap(),
        "linux/amd64".parse().unwrap(),
    );
    request.channel = Some("stable".parse().unwrap());
    let repository = Repository::open(&dir).unwrap();
    let published = repository.publish(&keys, &request).await.unwrap();
    let files = new_files(&dir, &served);
    assert!(files.len() >= 7, "{files:?}");

    // The last file first: it refers to files that are not here.
    let timestamp = std::fs::read(dir.join("metadata/timestamp.json")).unwrap();
    let early = put("metadata/timestamp.json", timestamp).await.unwrap_err();
    assert_eq!((early.status, early.kind.as_str()), (422, "refused"), "{early}");
    let mut sent = 0;
    let target = hub.target();
    cohort_hub::upload(&publisher.client, &target, &dir, &files, |_| sent += 1).await.unwrap();
    assert_eq!(sent, files.len());
    let blob = format!("/blobs/{}", published.manifest.root);
    let answer = hub.plain("GET", &blob, "").await;
    assert_eq!((answer.status, answer.body.len() as u64), (200, published.manifest.length));
    assert_eq!(releases(&served, &request), 1);
    cohort_hub::upload(&publisher.client, &target, &dir, &files, |_| {}).await.unwrap();

    // Wrong bytes, wrong names, wrong roles; nothing changes and nothing is left behind.
    let hash = "ab".repeat(32);
    let wrong = put(&format!("blobs/{hash}"), b"other".to_vec()).await.unwrap_err();
    assert_eq!((wrong.status, wrong.kind.as_str()), (422, "refused"), "{wrong}");
    for odd in ["keys/a", "metadata", "metadata/2.root.json", "metadata/%2e%2e/x", "blobs/x"] {
        let status = put(odd, b"x".to_vec()).await.unwrap_err().status;
        assert!(matches!(status, 400 | 404), "{odd}: {status}");
    }
    let large = put("metadata/9.targets.json", vec![b' '; 40 << 20]).await;
    assert!(large.is_err());
    let viewer = hub.client(Role::Viewer, "vera");
    let error = cohort_hub::upload(&viewer.client, &target, &dir, &files, |_| {}).await;
    assert!(error.is_err());
    let left = std::fs::read_dir(served.join(".incoming")).unwrap().count();
    assert_eq!(left, 0, "what is refused leaves nothing behind");
    hub.stop().await;
}

/// Waits until a file has the expected content.
async fn becomes(path: &Path, wanted: &[u8]) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    while std::fs::read(path).ok().as_deref() != Some(wanted) {
        assert!(tokio::time::Instant::now() < deadline, "{} did not come", path.display());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn what_is_published_is_acknowledged_when_the_bucket_has_it() {
    let mounted = tempfile::tempdir().unwrap();
    let bucket = mounted.path().join("bucket");
    std::fs::create_dir(&bucket).unwrap();
    let url = format!("file://{}", bucket.display());
    let hub = Running::start_with(|config| config.repository_bucket = Some(url)).await;
    // A repository created on the hub's machine is detected.
    let keys = Keys::generate().unwrap();
    let served = hub.config.repository_dir();
    Repository::create(&served, &keys, Lifetimes::default()).await.unwrap();
    let timestamp = |dir: &Path| std::fs::read(dir.join("metadata/timestamp.json")).unwrap();
    becomes(&bucket.join("metadata/timestamp.json"), &timestamp(&served)).await;

    let dir = mounted.path().join("copy");
    copy_folder(&served, &dir);
    let app = mounted.path().join("app");
    write(&app.join("run.sh"), "#!/bin/sh\nexit 0\n");
    let names = ("web".parse().unwrap(), "1.0.0".parse().unwrap());
    let mut request = PublishRequest::new(&app, names.0, names.1, "linux/amd64".parse().unwrap());
    request.channel = Some("stable".parse().unwrap());
    let repository = Repository::open(&dir).unwrap();
    repository.publish(&keys, &request).await.unwrap();
    let files = new_files(&dir, &served);
    let publisher = hub.client(Role::Publisher, "ci");
    let target = hub.target();
    let there = |name: &Path| bucket.join(name);
    let arrived = |name: &Path| {
        let (here, there) = (std::fs::read(dir.join(name)), std::fs::read(there(name)));
        assert_eq!(here.unwrap(), there.unwrap(), "{}", name.display());
    };
    cohort_hub::upload(&publisher.client, &target, &dir, &files, arrived).await.unwrap();
    assert_eq!(releases(&bucket, &request), 1);

    // Without the mount, nothing is acknowledged.
    repository
        .set_channel(&keys, &request.app, &"beta".parse().unwrap(), &request.version)
        .await
        .unwrap();
    std::fs::rename(&bucket, mounted.path().join("away")).unwrap();
    std::fs::write(&bucket, "in the way").unwrap();
    let files = new_files(&dir, &served);
    let refused = cohort_hub::upload(&publisher.client, &target, &dir, &files, |_| ()).await;
    let UploadError::Send { source: CallError::Answered { answer, .. }, .. } = refused.unwrap_err()
    else {
        panic!("the hub did not answer")
    };
    assert_eq!(answer.kind, "bucket");
    std::fs::remove_file(&bucket).unwrap();
    std::fs::rename(mounted.path().join("away"), &bucket).unwrap();
    cohort_hub::upload(&publisher.client, &target, &dir, &files, arrived).await.unwrap();
    let metrics = hub.plain("GET", "/metrics", "").await.text();
    assert!(metrics.contains("cohort_hub_bucket_failing 0"), "{metrics}");
    let (_folder, _authority, mut config) = hub.stop().await;
    config.repository_bucket = Some("s3://key:secret@bucket/x".to_owned());
    let error = cohort_hub::Hub::start(config).await.err().unwrap();
    assert!(matches!(error, HubError::Bucket(_)), "{error}");
}

/// How many versions of the published app are in a repository.
fn releases(dir: &Path, request: &PublishRequest) -> usize {
    let repository = Repository::open(dir).unwrap();
    repository.last_releases(&request.app, &request.platform).unwrap().len()
}
