//! A real S3-compatible server: moto, from the Python package index. A repository is pushed into a
//! private bucket, and a cache reads it from there.
//!
//! `cargo xtask test` sees to Python. Where it is not there, this test says so and is not run.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use cohort_artifact::{
    Fetcher, Keys, Lifetimes, Mirror, PublishRequest, Repository, TrustOptions, TrustedRepository,
};
use cohort_mirror::{Bucket, BucketSettings, push};

use crate::support::{DEADLINE, Running, config, quick};

/// The releases that were tried.
const MOTO: [&str; 3] = ["moto[s3]==5.2.5", "flask==3.1.3", "flask-cors==6.0.5"];

/// A virtual environment with moto in cargo's folder for tests, made once; nothing when this machine
/// has no Python.
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

/// An S3-compatible server in memory; it ends with the value.
struct Moto {
    url: String,
    child: Child,
}

impl Moto {
    async fn start() -> Option<Self> {
        let python = tokio::task::spawn_blocking(python_with_moto).await.unwrap()?;
        // Free now; whoever takes it in between makes the start fail, not the test lie.
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
        // What it says of requests is not read.
        let mut log = moto.child.stderr.take().unwrap();
        std::thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        Some(moto)
    }

    fn settings(&self) -> BucketSettings {
        [
            ("AWS_ACCESS_KEY_ID", "key"),
            ("AWS_SECRET_ACCESS_KEY", "secret"),
            ("AWS_ENDPOINT_URL", &self.url),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into_iter()
        .collect()
    }
}

impl Drop for Moto {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Publishes bytes that no compression makes smaller.
async fn publish(dir: &Path, repository: &Repository, keys: &Keys, version: &str, length: usize) {
    let source = dir.join(format!("source-{version}"));
    std::fs::create_dir_all(&source).unwrap();
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(version.as_bytes()).finalize_xof().fill(&mut bytes);
    std::fs::write(source.join("app"), bytes).unwrap();
    let (version, platform) = (version.parse().unwrap(), "linux/amd64".parse().unwrap());
    let mut request = PublishRequest::new(&source, "web".parse().unwrap(), version, platform);
    request.channel = Some("stable".parse().unwrap());
    repository.publish(keys, &request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_bucket_is_pushed_to_and_read_through_a_cache() {
    let Some(moto) = Moto::start().await else { return };
    let folder = tempfile::tempdir().unwrap();
    let keys = Keys::create(&folder.path().join("keys")).unwrap();
    let dir = folder.path().join("repository");
    let repository = Repository::create(&dir, &keys, Lifetimes::default()).await.unwrap();
    // More than one part.
    publish(folder.path(), &repository, &keys, "1.0.0+build.7", 20 << 20).await;
    let bucket = Bucket::open("s3://fleet/rel~1/x", &moto.settings()).unwrap();
    let error = push(&dir, &bucket, false, &|_| ()).await.unwrap_err();
    assert!(error.to_string().contains("NoSuchBucket"), "{error}");
    assert!(error.hints().concat().contains("make the bucket first"), "{:?}", error.hints());
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    client.put(format!("{}/fleet", moto.url)).send().await.unwrap().error_for_status().unwrap();
    let first = push(&dir, &bucket, false, &|_| ()).await.unwrap();
    assert!(first.bytes > 20 << 20, "{first:?}");
    assert_eq!(push(&dir, &bucket, false, &|_| ()).await.unwrap().files, 0);
    // The bucket is private: who has no key reads nothing.
    let public = format!("{}/fleet/rel~1/x/metadata/timestamp.json", moto.url);
    assert_eq!(client.get(public).send().await.unwrap().status(), 403);

    let mut config = config(folder.path(), &[], quick());
    config.origins = vec![bucket.name().to_owned()];
    config.buckets = moto.settings();
    // The server is no fast one, and one process.
    config.limits.first_byte_ms_max = 10_000;
    config.limits.unit_ms_max = 10_000;
    config.limits.idle_ms_max = 10_000;
    config.limits.revalidate_ms_max = 10_000;
    config.limits.small_ms_max = 10_000;
    let cache = Running::start(config).await;
    let read = async |name: &str| {
        let mirror: Mirror = format!("{}/", cache.url).parse().unwrap();
        let trusted = TrustedRepository::open(TrustOptions {
            root: repository.root_json().unwrap(),
            store: folder.path().join(name),
            mirrors: vec![mirror],
            fetcher: None::<Fetcher>,
        });
        let trusted = trusted.await.unwrap();
        let (app, channel) = ("web".parse().unwrap(), "stable".parse().unwrap());
        let offer = trusted.latest(&app, &channel, &"linux/amd64".parse().unwrap()).await.unwrap();
        offer.version.to_string()
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

    // Metadata is asked for again every time, and nothing comes when it is the same.
    let (_, timestamp) = cache.get("/metadata/timestamp.json").await;
    assert_eq!(timestamp.unwrap(), std::fs::read(dir.join("metadata/timestamp.json")).unwrap());
    assert_eq!(cache.metric("origin_bytes_total").await, before, "it is the same");
    publish(folder.path(), &repository, &keys, "1.1.0", 1 << 20).await;
    let second = push(&dir, &bucket, false, &|_| ()).await.unwrap();
    assert!(second.bytes < 2 << 20, "{second:?}");
    assert_eq!(read("reader").await, "1.1.0");

    cache.stop().await;
}
