//! A repository with one release, and a mirror of it on loopback that can misbehave.
#![allow(dead_code, reason = "each test file uses its own part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cohort_artifact::client::{ClientLimits, MirrorClient};
use cohort_artifact::{
    AppId, Channel, Keys, Lifetimes, Mirror, Platform, PublishRequest, Published, Repository,
    TrustOptions, TrustedRepository, Version,
};
use cohort_core::refused::WhyRefused;
use parking_lot::Mutex;

/// The manifests named by a repository's newest targets, sorted.
pub(crate) fn releases(repository: &Repository) -> Vec<String> {
    let folder = repository.dir().join("metadata");
    let version = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.strip_suffix(".targets.json").and_then(|version| version.parse::<u64>().ok())
    };
    let newest = bytes_below(&folder).keys().filter_map(version).max().unwrap();
    let bytes = fs::read(folder.join(format!("{newest}.targets.json"))).unwrap();
    let targets: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
    let names = targets["signed"]["targets"].as_object().unwrap().keys().cloned();
    let mut releases: Vec<String> = names.filter(|name| name.starts_with("apps/")).collect();
    releases.sort();
    releases
}

pub(crate) fn app() -> AppId {
    "web".parse().unwrap()
}

pub(crate) fn stable() -> Channel {
    "stable".parse().unwrap()
}

pub(crate) fn intel() -> Platform {
    "linux/intel".parse().unwrap()
}

pub(crate) fn version(text: &str) -> Version {
    text.parse().unwrap()
}

pub(crate) struct Fixture {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) keys: Keys,
    pub(crate) repository: Repository,
}

impl Fixture {
    /// A repository with 1.0.0 for one platform on the channel `stable`.
    pub(crate) async fn new() -> Self {
        Self::with_lifetimes(Lifetimes::default()).await
    }

    pub(crate) async fn with_lifetimes(lifetimes: Lifetimes) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let keys = Keys::generate().unwrap();
        let dir = folder.path().join("repository");
        let repository = Repository::create(&dir, &keys, lifetimes).await.unwrap();
        let fixture = Self { folder, keys, repository };
        fixture.publish("1.0.0").await;
        fixture
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A directory to publish: a few hundred incompressible kilobytes.
    pub(crate) fn source(&self, version: &str) -> PathBuf {
        let source = self.path(&format!("source-{version}"));
        fs::create_dir_all(source.join("bin")).unwrap();
        let mut bytes = vec![0; 300_000];
        blake3::Hasher::new().update(version.as_bytes()).finalize_xof().fill(&mut bytes);
        fs::write(source.join("bin/app"), bytes).unwrap();
        source
    }

    /// A directory to publish that barely differs from other versions.
    pub(crate) fn similar(&self, text: &str) -> PublishRequest {
        let source = self.path(&format!("similar-{text}"));
        fs::create_dir_all(source.join("bin")).unwrap();
        let mut bytes = vec![0; 400_000];
        blake3::Hasher::new().update(b"similar").finalize_xof().fill(&mut bytes);
        bytes.splice(1_000..1_000, text.bytes());
        fs::write(source.join("bin/app"), bytes).unwrap();
        let mut request = PublishRequest::new(&source, app(), version(text), intel());
        request.channel = Some(stable());
        request
    }

    pub(crate) fn request(&self, text: &str) -> PublishRequest {
        let mut request = PublishRequest::new(&self.source(text), app(), version(text), intel());
        request.channel = Some(stable());
        request
    }

    pub(crate) async fn publish(&self, version: &str) -> Published {
        self.repository.publish(&self.keys, &self.request(version)).await.unwrap()
    }

    /// Publishes the minimum: a channel that no test reads. Signs all lists again.
    pub(crate) async fn point_new_channel(&self, repository: &Repository) {
        let channel = format!("other-{}", repository.channels().unwrap().len()).parse().unwrap();
        let first = version("1.0.0");
        repository.set_channel(&self.keys, &app(), &channel, &first).await.unwrap();
    }

    /// The path of the newest metadata of a role, relative to the repository.
    pub(crate) fn newest(&self, role: &str) -> String {
        let suffix = format!(".{role}.json");
        let version = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.strip_suffix(&suffix).and_then(|version| version.parse::<u64>().ok())
        };
        let files = bytes_below(&self.repository.dir().join("metadata"));
        let newest = files.keys().filter_map(version).max().unwrap();
        format!("metadata/{newest}.{role}.json")
    }

    /// A copy of the repository in its current state.
    pub(crate) fn copy(&self, name: &str) -> PathBuf {
        let to = self.path(name);
        copy_folder(self.repository.dir(), &to);
        to
    }

    pub(crate) async fn reader(&self, store: &str, mirrors: Vec<Mirror>) -> TrustedRepository {
        TrustedRepository::open(self.options(store, mirrors)).await.unwrap()
    }

    pub(crate) fn options(&self, store: &str, mirrors: Vec<Mirror>) -> TrustOptions {
        let root = std::fs::read(self.repository.dir().join("metadata/root.json")).unwrap();
        // Patient enough for a busy machine; only the test of a silent mirror waits that long.
        let limit = std::time::Duration::from_secs(30);
        let limits = ClientLimits { connect: limit, first_byte: limit, idle: limit, file: limit };
        let client = MirrorClient::new(limits).unwrap();
        TrustOptions { root, store: self.path(store), mirrors, client }
    }

    /// The version on the channel.
    pub(crate) async fn latest(&self, reader: &TrustedRepository) -> Result<String, WhyRefused> {
        match reader.latest(&app(), &stable(), &intel()).await {
            Ok(manifest) => Ok(manifest.version.to_string()),
            Err(error) => Err(error.why),
        }
    }

    /// The same repository, with other lifetimes of signatures from now on.
    pub(crate) fn with_new_lifetimes(&self, change: impl Fn(&mut Lifetimes)) -> Repository {
        let path = self.repository.dir().join("repository.json");
        let mut settings: serde_json::Value =
            serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let mut lifetimes: Lifetimes =
            serde_json::from_value(settings["lifetimes"].clone()).unwrap();
        change(&mut lifetimes);
        settings["lifetimes"] = serde_json::to_value(lifetimes).unwrap();
        fs::write(&path, serde_json::to_vec(&settings).unwrap()).unwrap();
        Repository::open(self.repository.dir()).unwrap()
    }
}

pub(crate) fn folder(path: &Path) -> Mirror {
    Mirror::Folder(path.to_owned())
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Every file below a directory with its bytes: to show that nothing on disk has changed.
pub(crate) fn bytes_below(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(bytes_below(&path));
        } else {
            found.insert(path.clone(), fs::read(&path).unwrap());
        }
    }
    found
}

/// How the server responds for one path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    /// Endless bytes, without a length.
    Endless,
    /// A header that announces more than any limit.
    Huge,
    /// A server error.
    Status(u16),
    /// Half of the file, then the connection ends.
    Cut,
    /// Nothing, until the client gives up.
    Silence,
}

#[derive(Default)]
struct Shared {
    answers: BTreeMap<String, Answer>,
    log: Vec<String>,
}

/// A static server of a directory, on loopback, one thread per connection.
pub(crate) struct Server {
    pub(crate) mirror: Mirror,
    pub(crate) url: String,
    address: std::net::SocketAddr,
    shared: Arc<Mutex<Shared>>,
    stopped: Arc<std::sync::atomic::AtomicBool>,
}

impl Server {
    pub(crate) fn start(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let url = format!("http://{address}/");
        let shared = Arc::new(Mutex::new(Shared::default()));
        let stopped = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let (folder, in_thread, stop) = (folder.to_owned(), shared.clone(), stopped.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stop.load(std::sync::atomic::Ordering::SeqCst) {
                    return;
                }
                let (folder, shared) = (folder.clone(), in_thread.clone());
                std::thread::spawn(move || {
                    // A client that leaves early is part of the tests.
                    let _ = answer(&stream.unwrap(), &folder, &shared);
                });
            }
        });
        Self { mirror: url.parse().unwrap(), url, address, shared, stopped }
    }

    pub(crate) fn answer(&self, path: &str, answer: Answer) {
        self.shared.lock().answers.insert(format!("/{path}"), answer);
    }

    pub(crate) fn behave(&self) {
        self.shared.lock().answers.clear();
    }

    /// The paths requested since the last call.
    pub(crate) fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.lock().log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stopped.store(true, std::sync::atomic::Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn answer(mut stream: &TcpStream, folder: &Path, shared: &Mutex<Shared>) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream);
    let mut request = String::new();
    reader.read_line(&mut request)?;
    let mut line = String::new();
    while reader.read_line(&mut line)? > 2 {
        line.clear();
    }
    let path = request.split(' ').nth(1).unwrap_or("/").to_owned();
    let answer = {
        let mut shared = shared.lock();
        shared.log.push(path.trim_start_matches('/').to_owned());
        shared.answers.get(&path).copied()
    };
    match answer {
        Some(Answer::Endless) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")?;
            loop {
                stream.write_all(&[b' '; 65_536])?;
            }
        }
        Some(Answer::Huge) => stream.write_all(
            b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 99999999999\r\n\r\n",
        ),
        Some(Answer::Status(status)) => stream.write_all(
            format!("HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
                .as_bytes(),
        ),
        Some(Answer::Silence) => {
            // Ends when the client closes its side.
            reader.read_line(&mut line).map(|_| ())
        }
        Some(Answer::Cut) | None => {
            let path = percent_decoded(path.trim_start_matches('/'));
            let Ok(bytes) = fs::read(folder.join(path)) else {
                return stream.write_all(
                    b"HTTP/1.1 404 X\r\nConnection: close\r\nContent-Length: 0\r\n\r\n",
                );
            };
            let head = format!(
                "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
                bytes.len()
            );
            stream.write_all(head.as_bytes())?;
            let sent = if answer.is_some() { bytes.len() / 2 } else { bytes.len() };
            stream.write_all(&bytes[..sent])
        }
    }
}

fn percent_decoded(path: &str) -> String {
    path.replace("%7E", "~").replace("%2B", "+")
}
