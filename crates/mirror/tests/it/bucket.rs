//! Buckets: a real S3-compatible server, moto from the Python package index, and a store that
//! responds as the test wants.
//!
//! `cargo xtask test` checks for Python. Without it, the test with moto reports a skip.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::response::Response;
use cohort_artifact::client::{ClientLimits, MirrorClient};
use cohort_artifact::{
    Keys, Lifetimes, Mirror, PublishRequest, Repository, TrustOptions, TrustedRepository,
};
use cohort_mirror::{Bucket, BucketSettings, push};
use parking_lot::Mutex;

use crate::support::{DEADLINE, Running, Sample, UNIT, config, quick};

/// The versions that were tested.
const MOTO: [&str; 3] = ["moto[s3]==5.2.5", "flask==3.1.3", "flask-cors==6.0.5"];

/// A virtual environment with moto in cargo's directory for tests, created once; `None` on a
/// machine without Python.
fn python_with_moto() -> Option<PathBuf> {
    let version = Command::new("python3").arg("--version").output();
    if !version.is_ok_and(|output| output.status.success()) {
        let ci = std::env::var("CI").is_ok_and(|ci| ci == "true");
        assert!(!ci, "python3 is missing, and with CI=true no test may be skipped");
        eprintln!("SKIPPED: python3 is missing, so that there is no S3-compatible server");
        return None;
    }
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("moto-5.2.5");
    let python = home.join("bin/python");
    let works = |python: &Path| {
        let output = Command::new(python).args(["-c", "import moto.server, moto.s3"]).output();
        output.is_ok_and(|output| output.status.success())
    };
    if !works(&python) {
        run(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&home));
        let install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"];
        run(Command::new(&python).args(install).args(MOTO));
        assert!(works(&python), "moto was installed but cannot be imported");
    }
    Some(python)
}

fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    output
}

/// An S3-compatible server in memory; stops when dropped.
struct Moto {
    url: String,
    child: Child,
}

impl Moto {
    async fn start() -> Option<Self> {
        let python = tokio::task::spawn_blocking(python_with_moto).await.unwrap()?;
        // Free now; if another process takes it in between, the start fails, but the test is not
        // wrong.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut command = Command::new(python);
        command.args(["-m", "moto.server", "-H", "127.0.0.1", "-p", &port.to_string()]);
        command.env_clear().stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut moto =
            Self { url: format!("http://127.0.0.1:{port}"), child: command.spawn().unwrap() };
        let begun = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            if moto.child.try_wait().unwrap().is_some() || begun.elapsed() > DEADLINE {
                let mut error = String::new();
                let _ = moto.child.kill();
                moto.child.stderr.take().unwrap().read_to_string(&mut error).unwrap();
                panic!("moto does not answer: {error}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        // Its log of requests is not read.
        let mut log = moto.child.stderr.take().unwrap();
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Some(moto)
    }
}

fn settings(url: &str) -> BucketSettings {
    [("AWS_ACCESS_KEY_ID", "key"), ("AWS_SECRET_ACCESS_KEY", "secret"), ("AWS_ENDPOINT_URL", url)]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into_iter()
        .collect()
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Publishes bytes that do not compress.
async fn publish(dir: &Path, repository: &Repository, keys: &Keys, version: &str, length: usize) {
    let source = dir.join(format!("source-{version}"));
    std::fs::create_dir_all(&source).unwrap();
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(version.as_bytes()).finalize_xof().fill(&mut bytes);
    std::fs::write(source.join("app"), bytes).unwrap();
    let (version, platform) = (version.parse().unwrap(), "linux/amd64".parse().unwrap());
    let mut request = PublishRequest::new(&source, "web".parse().unwrap(), version, platform);
    request.channel = Some("stable".parse().unwrap());
    request.delta_budget = None;
    repository.publish(keys, &request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_bucket_is_pushed_to_and_read_through_a_cache() {
    let Some(moto) = Moto::start().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let keys = Keys::generate().unwrap();
    let dir = folder.path().join("repository");
    let repository = Repository::create(&dir, &keys, Lifetimes::default()).await.unwrap();
    // More than one part.
    publish(folder.path(), &repository, &keys, "1.0.0+build.7", 20 << 20).await;
    let bucket = Bucket::open("s3://fleet/rel~1/x", &settings(&moto.url)).unwrap();
    let error = push(&dir, &bucket, false, &|_| ()).await.unwrap_err();
    assert!(error.to_string().contains("NoSuchBucket"), "{error}");
    assert!(error.hints().concat().contains("make the bucket first"), "{:?}", error.hints());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    client.put(format!("{}/fleet", moto.url)).send().await.unwrap().error_for_status().unwrap();
    let first = push(&dir, &bucket, false, &|_| ()).await.unwrap();
    assert!(first.bytes > 20 << 20, "{first:?}");
    assert_eq!(push(&dir, &bucket, false, &|_| ()).await.unwrap().files, 0);
    // The bucket is private: without a key, nothing is readable.
    let public = format!("{}/fleet/rel~1/x/metadata/timestamp.json", moto.url);
    assert_eq!(client.get(public).send().await.unwrap().status(), 403);

    let mut config = config(folder.path(), &[], quick());
    config.origins = vec![bucket.name().to_owned()];
    config.buckets = settings(&moto.url);
    // The server is slow, and a single process.
    let patience = Duration::from_secs(10);
    config.limits.answer_max = patience;
    config.limits.revalidate_max = patience;
    config.limits.small_max = patience;
    let cache = Running::start(config).await;
    let read = async |name: &str| {
        let mirror: Mirror = format!("{}/", cache.url).parse().unwrap();
        let trusted = TrustedRepository::open(TrustOptions {
            root: std::fs::read(repository.dir().join("metadata/root.json")).unwrap(),
            store: folder.path().join(name),
            mirrors: vec![mirror],
            client: MirrorClient::new(ClientLimits::default()).unwrap(),
        });
        let trusted = trusted.await.unwrap();
        let (app, channel) = ("web".parse().unwrap(), "stable".parse().unwrap());
        let manifest =
            trusted.latest(&app, &channel, &"linux/amd64".parse().unwrap()).await.unwrap();
        manifest.version.to_string()
    };
    assert_eq!(read("reader").await, "1.0.0+build.7");
    let blobs = std::fs::read_dir(dir.join("blobs")).unwrap().map(|entry| entry.unwrap().path());
    let blob = blobs.into_iter().find(|path| path.extension().is_none()).unwrap();
    let path = format!("/blobs/{}", blob.file_name().unwrap().to_str().unwrap());
    let (status, body) = cache.get(&path).await;
    assert_eq!(status, 200);
    assert!(body.unwrap() == std::fs::read(&blob).unwrap(), "not the right bytes");
    assert_eq!(cache.get("/metadata/9.root.json").await.0, 404);
    let (before, size) = (cache.metric("origin_bytes_total").await, blob.metadata().unwrap().len());
    assert!(before < size * 105 / 100, "each unit comes once: {before} of {size}");

    // Metadata is revalidated every time; no body is sent if it is unchanged.
    let (_, timestamp) = cache.get("/metadata/timestamp.json").await;
    assert_eq!(timestamp.unwrap(), std::fs::read(dir.join("metadata/timestamp.json")).unwrap());
    assert_eq!(cache.metric("origin_bytes_total").await, before, "it is the same");
    publish(folder.path(), &repository, &keys, "1.1.0", 1 << 20).await;
    let second = push(&dir, &bucket, false, &|_| ()).await.unwrap();
    assert!(second.bytes < 2 << 20, "{second:?}");
    assert_eq!(read("reader").await, "1.1.0");

    cache.stop().await;
}

/// A store that responds as the test wants.
#[derive(Default)]
struct Said {
    /// How many more writes it refuses, asking for fewer.
    busy_writes: AtomicU32,
    /// Its response to every read: a status and a code.
    reads: Mutex<Option<(u16, &'static str)>>,
    written: Mutex<Vec<String>>,
}

async fn scripted(State(said): State<Arc<Said>>, request: Request) -> Response {
    let answer = |status: u16, text: String| {
        let response = Response::builder().status(status).header("etag", "\"1\"");
        response.header("content-type", "application/xml").body(Body::from(text)).unwrap()
    };
    let error = |status: u16, code: &str| {
        answer(status, format!("<Error><Code>{code}</Code><Message>As it is.</Message></Error>"))
    };
    let path = request.uri().path().to_owned();
    let query = request.uri().query().unwrap_or_default();
    let signed = request.headers().contains_key("authorization")
        || query.contains("X-Amz-Signature=") && request.method() == "GET";
    assert!(signed, "{path} is not signed");
    if request.method() == "PUT" {
        let less = |left: u32| left.checked_sub(1);
        if said.busy_writes.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less).is_ok() {
            return error(503, "SlowDown");
        }
        said.written.lock().push(path);
        return answer(200, String::new());
    }
    if let Some((status, code)) = *said.reads.lock() {
        let mut response = error(status, code);
        response.headers_mut().insert("retry-after", "7".parse().unwrap());
        return response;
    }
    if query.contains("list-type=2") {
        let list = "<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>";
        return answer(200, list.to_owned());
    }
    error(404, "NoSuchKey")
}

/// Starts it; returns its script, and the settings to reach it.
async fn store() -> (Arc<Said>, BucketSettings) {
    let said = Arc::new(Said::default());
    let router = Router::new().fallback(scripted).with_state(Arc::clone(&said));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    (said, settings(&url))
}

#[tokio::test]
async fn a_store_that_asks_for_less_is_asked_again() {
    let folder = tempfile::tempdir().unwrap();
    let keys = Keys::generate().unwrap();
    let dir = folder.path().join("repository");
    Repository::create(&dir, &keys, Lifetimes::default()).await.unwrap();
    let (said, settings) = store().await;
    said.busy_writes.store(2, Ordering::SeqCst);
    let bucket = Bucket::open("s3://fleet/x", &settings).unwrap();
    let pushed = push(&dir, &bucket, false, &|_| ()).await.unwrap();
    let written = said.written.lock().clone();
    assert_eq!(written.len() as u64, pushed.files, "{written:?}");
    assert_eq!(written.last().unwrap(), "/fleet/x/metadata/timestamp.json");
}

#[tokio::test]
async fn a_busy_or_closed_store_is_an_origin_like_any_other() {
    let path = format!("/blobs/{}", "a".repeat(64));
    for (status, code, wanted) in [
        (503, "SlowDown", 503),
        (429, "TooManyRequests", 503),
        // Without permission to list, a missing file is forbidden.
        (403, "AccessDenied", 404),
        (404, "NoSuchKey", 404),
        (404, "NoSuchBucket", 502),
        (403, "InvalidAccessKeyId", 502),
        (500, "InternalError", 502),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let (said, settings) = store().await;
        *said.reads.lock() = Some((status, code));
        let mut config = config(folder.path(), &[], quick());
        config.origins = vec!["s3://fleet/x".to_owned()];
        config.buckets = settings;
        let cache = Running::start(config).await;
        for path in [path.as_str(), "/metadata/2.root.json"] {
            let answer = cache.send(path, &[]).await;
            let after = answer.headers().get("retry-after").cloned();
            let (found, text) = (answer.status().as_u16(), answer.text().await.unwrap());
            // Paused after the first failure.
            assert!(found == wanted || found == 503 && wanted == 502, "{code}: {found} {text}");
            if wanted == 503 {
                let after: u64 = after.unwrap().to_str().unwrap().parse().unwrap();
                assert!((5..=8).contains(&after), "{after}");
            }
            assert!(found != 502 || text.contains(code), "{text}");
        }
        cache.stop().await;
    }
}

#[tokio::test]
async fn a_folder_that_is_mounted_is_an_origin() {
    let folder = tempfile::tempdir().unwrap();
    let mounted = folder.path().join("mounted");
    let sample = Sample::new("mounted", 40 * UNIT + 7);
    for (path, bytes) in [
        (sample.path(), sample.bytes.to_vec()),
        (sample.units_path(), sample.hashes.to_bytes()),
        ("/metadata/timestamp.json".to_owned(), b"one".to_vec()),
    ] {
        let path = mounted.join(path.trim_start_matches('/'));
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    let mut config = config(folder.path(), &[], quick());
    config.origins = vec![format!("file://{}", mounted.display())];
    let cache = Running::start(config).await;
    cache.assert_gives(&sample).await;
    let timestamp = async || cache.get("/metadata/timestamp.json").await.1.unwrap();
    assert_eq!((timestamp().await, timestamp().await), ("one".into(), "one".into()));
    std::fs::write(mounted.join("metadata/timestamp.json"), "other").unwrap();
    assert_eq!(timestamp().await, "other");
    assert_eq!(cache.get("/metadata/2.root.json").await.0, 404);
    let absent = Sample::new("absent", UNIT);
    assert_eq!(cache.get(&absent.path()).await.0, 404);
}
