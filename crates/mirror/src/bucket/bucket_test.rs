//! Pushing to an in-memory store that fails at any write; URLs, settings, errors.

use std::fmt;
use std::path::Path as FilePath;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use cohort_artifact::{Keys, Lifetimes, PublishRequest, Repository};
use futures_util::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    ObjectStoreExt as _, PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use parking_lot::Mutex;
use tempfile::TempDir;

use super::{Bucket, BucketError, BucketSettings, push, push_file};

impl Bucket {
    fn of(store: Arc<dyn ObjectStore>, prefix: &str) -> Self {
        let prefix = prefix.to_owned();
        Self { store, signer: None, prefix, name: "memory".to_owned(), keeps_attributes: true }
    }
}

/// An in-memory store that accepts a limited number of writes, and records their order.
#[derive(Debug)]
struct Breaking {
    inner: InMemory,
    writes_left: AtomicUsize,
    written: Mutex<Vec<String>>,
}

impl Breaking {
    fn after(writes: usize) -> Arc<Self> {
        Arc::new(Self {
            inner: InMemory::new(),
            writes_left: AtomicUsize::new(writes),
            written: Mutex::default(),
        })
    }

    fn take_write(&self, path: &Path) -> Result<()> {
        let less = |left: usize| left.checked_sub(1);
        let taken = self.writes_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        taken.map_err(|_| object_store::Error::Generic {
            store: "memory",
            source: "<Code>SlowDown</Code><Message>Please reduce your request rate.</Message>"
                .into(),
        })?;
        self.written.lock().push(path.to_string());
        Ok(())
    }

    fn written(&self) -> Vec<String> {
        self.written.lock().clone()
    }

    async fn bytes(&self, path: &str) -> Option<Vec<u8>> {
        let found = self.inner.get(&Path::parse(path).unwrap()).await.ok()?;
        Some(found.bytes().await.unwrap().to_vec())
    }
}

impl fmt::Display for Breaking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("breaking")
    }
}

/// Forwards a part, and counts the last write.
#[derive(Debug)]
struct Parts {
    store: Arc<dyn ObjectStore>,
    inner: Box<dyn MultipartUpload>,
    refused: bool,
}

#[async_trait]
impl MultipartUpload for Parts {
    fn put_part(&mut self, data: PutPayload) -> object_store::UploadPart {
        self.inner.put_part(data)
    }

    async fn complete(&mut self) -> Result<PutResult> {
        assert!(!self.refused, "{}: completed after all", self.store);
        self.inner.complete().await
    }

    async fn abort(&mut self) -> Result<()> {
        self.refused = true;
        self.inner.abort().await
    }
}

#[async_trait]
impl ObjectStore for Breaking {
    async fn put_opts(&self, path: &Path, body: PutPayload, o: PutOptions) -> Result<PutResult> {
        self.take_write(path)?;
        self.inner.put_opts(path, body, o).await
    }

    async fn put_multipart_opts(
        &self,
        path: &Path,
        options: PutMultipartOptions,
    ) -> Result<Box<dyn MultipartUpload>> {
        self.take_write(path)?;
        let inner = self.inner.put_multipart_opts(path, options).await?;
        let store = Arc::new(InMemory::new());
        Ok(Box::new(Parts { store, inner, refused: false }))
    }

    async fn get_opts(&self, path: &Path, options: GetOptions) -> Result<GetResult> {
        self.inner.get_opts(path, options).await
    }

    fn delete_stream(
        &self,
        paths: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        self.inner.delete_stream(paths)
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        self.inner.list(prefix)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, from: &Path, to: &Path, options: CopyOptions) -> Result<()> {
        self.inner.copy_opts(from, to, options).await
    }
}

struct Fixture {
    folder: TempDir,
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

    fn dir(&self) -> &FilePath {
        self.repository.dir()
    }

    async fn publish(&self, version: &str, length: usize) {
        let source = self.folder.path().join(format!("source-{version}"));
        std::fs::create_dir_all(&source).unwrap();
        let mut bytes = vec![0; length];
        blake3::Hasher::new().update(version.as_bytes()).finalize_xof().fill(&mut bytes);
        std::fs::write(source.join("app"), bytes).unwrap();
        let version = version.parse().unwrap();
        let platform = "linux/amd64".parse().unwrap();
        let mut request = PublishRequest::new(&source, "web".parse().unwrap(), version, platform);
        request.channel = Some("stable".parse().unwrap());
        request.delta_budget = None;
        self.repository.publish(&self.keys, &request).await.unwrap();
    }

    fn read(&self, relative: &str) -> Vec<u8> {
        std::fs::read(self.dir().join(relative)).unwrap()
    }
}

/// Checks that everything a reader finds by following the timestamp is there, and is ours.
async fn assert_whole(store: &Breaking, fixture: &Fixture) {
    let Some(timestamp) = store.bytes("r/metadata/timestamp.json").await else { return };
    let snapshot = super::plan::next_in_chain(&timestamp, "snapshot").unwrap();
    let bytes = store.bytes(&format!("r/{snapshot}")).await.expect("the snapshot is there");
    let targets = super::plan::next_in_chain(&bytes, "targets").unwrap();
    let bytes = store.bytes(&format!("r/{targets}")).await.expect("the targets are there");
    let parsed: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    for (name, target) in parsed["signed"]["targets"].as_object().unwrap() {
        let hash = target["hashes"]["sha256"].as_str().unwrap();
        let (folder, file) = name.rsplit_once('/').unwrap();
        let path = format!("targets/{folder}/{hash}.{file}");
        let target = store.bytes(&format!("r/{path}")).await;
        assert_eq!(target.expect("the target is there"), fixture.read(&path), "{path}");
        if file == "manifest.json" {
            let manifest: serde_json::Value = serde_json::from_slice(&fixture.read(&path)).unwrap();
            let root = manifest["root"].as_str().unwrap();
            for path in [format!("blobs/{root}"), format!("blobs/{root}.units")] {
                let blob = store.bytes(&format!("r/{path}")).await;
                assert!(blob.expect("the artifact is there") == fixture.read(&path), "{path}");
            }
        }
    }
}

#[tokio::test]
async fn a_push_that_breaks_anywhere_is_never_seen_and_goes_on() {
    let fixture = Fixture::new().await;
    fixture.publish("1.0.0", 100_000).await;
    let store = Breaking::after(usize::MAX);
    let bucket = Bucket::of(store.clone(), "r");
    let all = push(fixture.dir(), &bucket, false, &|_| ()).await.unwrap();
    assert_whole(&store, &fixture).await;
    assert_eq!(store.written().last().unwrap(), "r/metadata/timestamp.json");
    assert_eq!((all.files as usize, all.there), (store.written().len(), 0));
    let again = push(fixture.dir(), &bucket, false, &|_| ()).await.unwrap();
    assert_eq!((again.files, again.there), (0, all.files));
    for writes in 0..all.files as usize {
        let store = Breaking::after(writes);
        let bucket = Bucket::of(store.clone(), "r");
        let error = push(fixture.dir(), &bucket, false, &|_| ()).await.unwrap_err();
        assert!(matches!(error, BucketError::Request { .. }), "{error}");
        let text = error.to_string();
        assert!(text.ends_with(": SlowDown: Please reduce your request rate."), "{text}");
        assert!(store.bytes("r/metadata/timestamp.json").await.is_none());
        let before = store.written();
        assert_eq!(before.len(), writes);
        store.writes_left.store(usize::MAX, Ordering::SeqCst);
        push(fixture.dir(), &bucket, false, &|_| ()).await.unwrap();
        assert_whole(&store, &fixture).await;
        let twice: Vec<_> = store.written()[writes..]
            .iter()
            .filter(|path| before.contains(path))
            .cloned()
            .collect();
        let blobs_again = twice.iter().any(|path| !path.contains("/metadata/"));
        assert!(!blobs_again, "sent twice: {twice:?}");
    }
}

#[tokio::test]
async fn the_next_release_costs_only_itself() {
    let fixture = Fixture::new().await;
    fixture.publish("1.0.0", 50_000).await;
    let store = Breaking::after(usize::MAX);
    let bucket = Bucket::of(store.clone(), "r");
    push(fixture.dir(), &bucket, false, &|_| ()).await.unwrap();
    let before = store.written();
    fixture.publish("1.1.0", 60_000).await;
    push(fixture.dir(), &bucket, false, &|_| ()).await.unwrap();
    assert_whole(&store, &fixture).await;
    let new: Vec<_> = store.written()[before.len()..].to_vec();
    let count = |folder: &str| new.iter().filter(|p| p.starts_with(&format!("r/{folder}"))).count();
    assert_eq!((count("blobs/"), count("targets/")), (2, 2), "{new:?}");
    assert!(count("metadata/") <= 4, "{new:?}");
    // One by one, as a hub does it: the timestamp is skipped, existing files are not sent again.
    let before = store.written().len();
    for path in new.iter().map(|path| path.strip_prefix("r/").unwrap()) {
        push_file(fixture.dir(), &bucket, path).await.unwrap();
    }
    let sent = store.written()[before..].to_vec();
    assert!(sent.iter().all(|p| p.contains("/metadata/") && !p.contains("timestamp")), "{sent:?}");
}

#[tokio::test]
async fn what_is_older_or_of_others_replaces_nothing() {
    let fixture = Fixture::new().await;
    fixture.publish("1.0.0", 5_000).await;
    let copy = fixture.folder.path().join("copy");
    copy_folder(fixture.dir(), &copy);
    fixture.publish("1.1.0", 5_000).await;
    let store = Breaking::after(usize::MAX);
    let bucket = Bucket::of(store.clone(), "r");
    push(fixture.dir(), &bucket, false, &|_| ()).await.unwrap();
    let error = push(&copy, &bucket, true, &|_| ()).await.unwrap_err();
    assert!(matches!(error, BucketError::Ahead { theirs, ours, .. } if theirs > ours), "{error}");
    let other = Fixture::new().await;
    let error = push(other.dir(), &bucket, true, &|_| ()).await.unwrap_err();
    assert!(matches!(error, BucketError::Foreign { .. }) && !error.hints().is_empty(), "{error}");
    assert_whole(&store, &fixture).await;
    let empty = tempfile::tempdir().unwrap();
    let error = push(empty.path(), &bucket, false, &|_| ()).await.unwrap_err();
    assert!(matches!(error, BucketError::NoRepository { .. }), "{error}");
}

#[tokio::test]
async fn what_the_disk_has_damaged_stays_here() {
    let fixture = Fixture::new().await;
    // In parts, and in one piece.
    for length in [20 << 20, 5_000] {
        let version = format!("1.0.{length}");
        fixture.publish(&version, length).await;
        let blobs = std::fs::read_dir(fixture.dir().join("blobs")).unwrap();
        let blob = blobs
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.extension().is_none())
            .max_by_key(|path| path.metadata().unwrap().modified().unwrap())
            .unwrap();
        let right = std::fs::read(&blob).unwrap();
        let mut wrong = right.clone();
        wrong[2000] ^= 1;
        std::fs::write(&blob, wrong).unwrap();
        let store = Breaking::after(usize::MAX);
        let bucket = Bucket::of(store.clone(), "r");
        let error = push(fixture.dir(), &bucket, false, &|_| ()).await.unwrap_err();
        assert!(matches!(&error, BucketError::Damaged { path, .. } if *path == blob), "{error}");
        let name = format!("r/blobs/{}", blob.file_name().unwrap().to_str().unwrap());
        assert!(store.bytes(&name).await.is_none(), "never shown");
        std::fs::write(&blob, right).unwrap();
        let sent = std::sync::atomic::AtomicU64::new(0);
        let count = |bytes| {
            sent.fetch_add(bytes, Ordering::Relaxed);
        };
        let pushed = push(fixture.dir(), &bucket, false, &count).await.unwrap();
        assert!(pushed.bytes <= sent.into_inner(), "what was sent is told");
        assert_whole(&store, &fixture).await;
    }
}

#[tokio::test]
async fn a_folder_is_a_bucket_as_well() {
    let fixture = Fixture::new().await;
    fixture.publish("1.0.0", 9 << 20).await;
    let folder = fixture.folder.path().join("mounted");
    let url = format!("file://{}", folder.display());
    let settings = BucketSettings::default();
    let error = Bucket::open(&url, &settings).unwrap_err();
    assert!(matches!(error, BucketError::Settings { .. }), "not mounted: {error}");
    std::fs::create_dir(&folder).unwrap();
    let bucket = Bucket::open(&url, &settings).unwrap();
    let pushed = push(fixture.dir(), &bucket, false, &|_| ()).await.unwrap();
    // A second release replaces the timestamp.
    fixture.publish("1.1.0", 1000).await;
    push(fixture.dir(), &bucket, false, &|_| ()).await.unwrap();
    let again = push(fixture.dir(), &bucket, false, &|_| ()).await.unwrap();
    assert_eq!(again.files, 0);
    assert!(again.there > pushed.files);
    let same = |relative: &str| {
        assert_eq!(std::fs::read(folder.join(relative)).unwrap(), fixture.read(relative));
    };
    same("metadata/timestamp.json");
    Repository::open(&folder).unwrap().expiries().unwrap();
    assert!(!folder.join("repository.json").exists(), "not for readers");
}

#[test]
fn urls_say_a_bucket_and_a_prefix() {
    let settings: BucketSettings = [
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "very-secret"),
        ("AZURE_STORAGE_ACCOUNT_NAME", "account"),
        ("AWS_BUCKET", "of-another-program"),
        ("PATH", "/bin"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .into_iter()
    .collect();
    let shown = format!("{settings:?}");
    assert!(!shown.contains("very-secret") && !shown.contains("PATH"), "{shown}");
    for right in
        ["s3://bucket", "s3://bucket/", "s3://bucket/a/b-c", "az://container/x", "gs://b/x"]
    {
        let bucket = Bucket::open(right, &settings).unwrap_or_else(|e| panic!("{right}: {e}"));
        let shown = format!("{bucket:?}");
        assert!(!shown.contains("very-secret"), "{shown}");
        let store = bucket.store.to_string();
        assert!(!store.contains("of-another-program"), "{store}");
    }
    for wrong in [
        "s3://",
        "s3:///x",
        "s3://key:secret@bucket/x",
        "s3://bucket:9000/x",
        "s3://bucket/x?region=y",
        "s3://bucket/a//b",
        "s3://bucket/a%20b/x",
        "ftp://x/y",
        "file://host/x",
        "bucket/x",
    ] {
        let error = Bucket::open(wrong, &settings).unwrap_err();
        assert!(matches!(error, BucketError::Url { .. }), "{wrong}: {error}");
        assert!(!error.hints().is_empty(), "{wrong}");
    }
    let half: BucketSettings =
        [("AWS_ACCESS_KEY_ID".to_owned(), "key".to_owned())].into_iter().collect();
    let error = Bucket::open("s3://bucket/x", &half).unwrap_err();
    assert!(matches!(error, BucketError::Settings { .. }), "{error}");
}

fn copy_folder(from: &FilePath, to: &FilePath) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), to).unwrap();
        }
    }
}
