//! The plain port, uploads, and the renewal of the timestamp.

use std::path::Path;
use std::time::Duration;

use cohort_artifact::{Keys, Lifetimes, Repository};
use cohort_identity::Role;
use cohort_wire::http::Call;
use cohort_wire::hub::upload_path;

use crate::support::Running;

fn write(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

#[tokio::test]
async fn files_are_served_with_ranges_tags_and_lengths() {
    let hub = Running::start().await;
    let dir = hub.config.repository_dir();
    write(&dir.join("blobs/ab"), "0123456789");
    write(&dir.join("metadata/timestamp.json"), "{}");
    let whole = hub.plain("GET", "/blobs/ab", "").await;
    assert_eq!((whole.status, whole.text().as_str()), (200, "0123456789"));
    assert_eq!(whole.header("content-length"), Some("10"));
    assert_eq!(whole.header("accept-ranges"), Some("bytes"));
    let tag = whole.header("etag").unwrap().to_owned();

    let head = hub.plain("HEAD", "/blobs/ab", "").await;
    assert_eq!((head.status, head.body.len()), (200, 0));
    assert_eq!(head.header("content-length"), Some("10"));

    let part = hub.plain("GET", "/blobs/ab", "Range: bytes=2-4\r\n").await;
    assert_eq!((part.status, part.text().as_str()), (206, "234"));
    assert_eq!(part.header("content-range"), Some("bytes 2-4/10"));
    assert_eq!(part.header("content-length"), Some("3"));
    let tail = hub.plain("GET", "/blobs/ab", "Range: bytes=-2\r\n").await;
    assert_eq!((tail.status, tail.text().as_str()), (206, "89"));
    let beyond = hub.plain("GET", "/blobs/ab", "Range: bytes=10-\r\n").await;
    assert_eq!(beyond.status, 416);
    assert_eq!(beyond.header("content-range"), Some("bytes */10"));
    let other = hub.plain("GET", "/blobs/ab", "Range: bytes=2-4\r\nIf-Range: \"old\"\r\n").await;
    assert_eq!((other.status, other.body.len()), (200, 10), "another file by now: the whole");
    let same = format!("Range: bytes=2-4\r\nIf-Range: {tag}\r\n");
    assert_eq!(hub.plain("GET", "/blobs/ab", &same).await.status, 206);

    let known = hub.plain("GET", "/blobs/ab", &format!("If-None-Match: {tag}\r\n")).await;
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
        let answer = hub.plain(method, "/blobs/ab", "Content-Length: 0\r\n").await;
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
    let error = cohort_hub::Hub::start(config).await.err().unwrap().to_string();
    assert!(error.contains("repository_dir"), "{error}");
}

#[tokio::test]
async fn the_timestamp_is_renewed_before_it_ends() {
    let hub = Running::start_with(|config| config.renew_interval_s = 1).await;
    let keys_dir = hub.config.timestamp_key().parent().unwrap().to_owned();
    let keys = Keys::create(&keys_dir).unwrap();
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

/// Every file below a folder, by its path relative to it, the timestamp last: the publisher's order.
fn files(dir: &Path) -> Vec<String> {
    fn walk(dir: &Path, below: &str, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let name = format!("{below}{}", entry.file_name().to_str().unwrap());
            if entry.path().is_dir() {
                walk(&entry.path(), &format!("{name}/"), found);
            } else {
                found.push(name);
            }
        }
    }
    let mut found = Vec::new();
    for folder in ["blobs", "targets", "metadata"] {
        if dir.join(folder).exists() {
            walk(&dir.join(folder), &format!("{folder}/"), &mut found);
        }
    }
    found.sort_by_key(|name| name == "metadata/timestamp.json");
    found
}

#[tokio::test]
async fn a_publishing_is_uploaded_in_an_order_that_readers_survive() {
    let hub = Running::start().await;
    let local = tempfile::tempdir().unwrap();
    let keys = Keys::generate().unwrap();
    let dir = local.path().join("repository");
    let repository = Repository::create(&dir, &keys, Lifetimes::default()).await.unwrap();
    let publisher = hub.client(Role::Publisher, "ci");
    let upload = |name: String| {
        let bytes = std::fs::read(dir.join(&name)).unwrap();
        let call = Call::new(http::Method::PUT, upload_path(&name)).bytes(bytes);
        publisher.send(call)
    };
    // The timestamp before what it refers to: refused.
    let early = upload("metadata/timestamp.json".into()).await.unwrap_err();
    assert_eq!(early.status, 409, "{early}");
    for name in files(&dir) {
        assert_eq!(upload(name.clone()).await.unwrap(), 201, "{name}");
    }
    let served = hub.plain("GET", "/metadata/timestamp.json", "").await;
    assert_eq!(served.body, std::fs::read(dir.join("metadata/timestamp.json")).unwrap());
    // The same again is welcome, except for a timestamp that is no newer.
    assert_eq!(upload("metadata/1.root.json".into()).await.unwrap(), 200);
    let again = upload("metadata/timestamp.json".into()).await.unwrap_err();
    assert_eq!(again.status, 409, "{again}");
    repository.renew_timestamp(&keys.timestamp).await.unwrap();
    assert_eq!(upload("metadata/timestamp.json".into()).await.unwrap(), 201);
    // What is there is never replaced, and nothing lands outside.
    let other = Call::new(http::Method::PUT, upload_path("metadata/1.root.json")).bytes("{}");
    assert_eq!(publisher.send(other).await.unwrap_err().status, 409);
    for odd in ["keys/a", "metadata", "metadata/.hidden", "metadata/%2e%2e/x", "repository.json"] {
        let call = Call::new(http::Method::PUT, upload_path(odd)).bytes("x");
        let status = publisher.send(call).await.unwrap_err().status;
        assert!(matches!(status, 400 | 404), "{odd}: {status}");
    }
    let left = std::fs::read_dir(hub.config.repository_dir().join("metadata")).unwrap();
    let unfinished = left
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'))
        .count();
    assert_eq!(unfinished, 0, "what is refused leaves nothing behind");
    hub.stop().await;
}
