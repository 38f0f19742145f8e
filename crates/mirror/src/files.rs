//! Signed metadata and targets: small files that are asked for again every time.
//!
//! A file below `metadata/` is given only after an origin was asked whether it is still the same; when
//! no origin answers, the last copy is given, because its readers judge for themselves how fresh it
//! is. *There is none* is an answer too: it is what ends a reader's search for a newer root. A target
//! whose name holds its own hash never changes, so it is checked and then kept.
//!
//! On disk each is one file, named by the hash of its path: one line of JSON ([`Head`]), then the
//! content.

use std::collections::HashMap;
use std::fs::{self, FileTimes};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use cohort_artifact::MANIFEST_BYTES_MAX;
use cohort_identity::sha256_hex;
use http::header::{ETAG, IF_MODIFIED_SINCE, IF_NONE_MATCH, LAST_MODIFIED};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};

use crate::flights::Flights;
use crate::metrics::add;
use crate::origins::{OriginError, Refused};
use crate::recent::Recent;
use crate::shared::Shared;

/// Longest metadata file that lists targets, in bytes: what readers take.
pub(crate) const TARGETS_METADATA_BYTES_MAX: u64 = 16 << 20;

/// Longest other metadata file: what readers take.
const METADATA_BYTES_MAX: u64 = 256 << 10;

/// Small files in memory, in bytes: a few generations of everything that is read.
const MEMORY_BYTES_MAX: u64 = 64 << 20;

/// Small files on disk, in number and bytes. Generations of metadata pile up, and only the newest
/// are asked for.
const FILES_MAX: usize = 20_000;
const FILES_BYTES_MAX: u64 = 256 << 20;

/// Small files never take more than this part of the cache.
const FILES_SHARE: u64 = 4;

/// What small files may take of a cache of this size, in bytes.
pub(crate) fn files_bytes_max(cache_bytes: u64) -> u64 {
    FILES_BYTES_MAX.min(cache_bytes / FILES_SHARE)
}

/// Validators of an origin that are longer are not sent back.
const VALIDATOR_BYTES_MAX: usize = 256;

/// What is known of a file, as its first line on disk.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Head {
    path: String,
    /// Whose answer it is: a tag means nothing to another origin.
    origin: String,
    etag: Option<String>,
    modified: Option<String>,
    /// There was no such file.
    absent: bool,
    /// Hash of the content: a file that a crash has torn is not believed.
    blake3: String,
}

/// A small file.
#[derive(Debug)]
pub(crate) struct SmallFile {
    head: Head,
    pub(crate) body: Bytes,
}

impl SmallFile {
    /// The tag that readers get: the content's own, whichever origin it came from.
    pub(crate) fn etag(&self) -> String {
        format!("\"{}\"", &self.head.blake3[..32])
    }
}

/// The small files of a cache.
pub(crate) struct Files {
    shared: Arc<Shared>,
    dir: PathBuf,
    bytes_max: u64,
    inner: Mutex<Inner>,
    asking: Arc<Flights<Result<Arc<SmallFile>, Refused>>>,
    absent: Recent,
}

#[derive(Default)]
struct Inner {
    /// By the name on disk.
    entries: HashMap<String, Entry>,
    bytes: u64,
    memory: u64,
    clock: u64,
}

struct Entry {
    bytes: u64,
    used: u64,
    file: Option<Arc<SmallFile>>,
}

impl Files {
    /// Takes over the folder `files` of a cache. Blocking.
    pub(crate) fn open(dir: PathBuf, cache_bytes: u64, shared: Arc<Shared>) -> io::Result<Self> {
        fs::create_dir_all(&dir)?;
        let absent = Recent::new(Duration::from_millis(shared.limits.absent_ms));
        let bytes_max = files_bytes_max(cache_bytes);
        let inner = Mutex::default();
        let files = Self { shared, dir, bytes_max, inner, asking: Flights::new(), absent };
        files.scan()?;
        Ok(files)
    }

    fn scan(&self) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let about = entry.metadata()?;
            if name.starts_with('.') {
                fs::remove_file(entry.path())?;
            } else if about.is_file() {
                found.push((about.modified()?, name, about.len()));
            }
        }
        found.sort();
        let mut inner = self.lock();
        for (_, name, bytes) in found {
            inner.clock += 1;
            let used = inner.clock;
            inner.bytes += bytes;
            inner.entries.insert(name, Entry { bytes, used, file: None });
        }
        self.trim(&mut inner);
        Ok(())
    }

    /// The file at a path below the repository.
    pub(crate) async fn get(self: &Arc<Self>, path: &str) -> Result<Arc<SmallFile>, Refused> {
        let named = hash_in_name(path).is_some();
        let last = self.last(path).await;
        if let Some(last) = last.as_ref().filter(|_| named) {
            return Ok(Arc::clone(last));
        }
        if self.absent.knows(path) {
            return Err(Refused::Absent);
        }
        let asked = self.asking.join(path, || {
            let (files, path) = (Arc::clone(self), path.to_owned());
            async move { files.ask(&path, last).await }
        });
        let file =
            asked.await.unwrap_or_else(|| Err(Refused::Failed("it broke down".to_owned())))?;
        if file.head.absent { Err(Refused::Absent) } else { Ok(file) }
    }

    /// Asks the origins; falls back on the last copy.
    async fn ask(
        &self,
        path: &str,
        last: Option<Arc<SmallFile>>,
    ) -> Result<Arc<SmallFile>, Refused> {
        let limits = &self.shared.limits;
        add(&self.shared.metrics.revalidations, 1);
        let patience = match &last {
            Some(_) => limits.revalidate_ms_max,
            None => limits.small_ms_max,
        };
        let patience = Duration::from_millis(patience) / self.shared.origins.count();
        let answer = self.ask_origins(path, last.as_ref(), patience).await;
        match (answer, last) {
            (Ok(file), Some(last)) if Arc::ptr_eq(&file, &last) => Ok(file),
            (Ok(file), _) => {
                self.keep(Arc::clone(&file)).await;
                Ok(file)
            }
            (Err(Refused::Absent), _) => {
                self.absent.note(path);
                // The end of the chain of roots has to be known when the origin is away.
                if path.ends_with(".root.json") {
                    let origin = String::new();
                    let file = SmallFile::new(path, origin, None, None, true, Bytes::new());
                    self.keep(Arc::new(file)).await;
                }
                Err(Refused::Absent)
            }
            (Err(refused), Some(last)) => {
                add(&self.shared.metrics.last_copies, 1);
                tracing::debug!(path, ?refused, "no origin answers: the last copy is served");
                Ok(last)
            }
            (Err(refused), None) => Err(refused),
        }
    }

    async fn ask_origins(
        &self,
        path: &str,
        last: Option<&Arc<SmallFile>>,
        patience: Duration,
    ) -> Result<Arc<SmallFile>, Refused> {
        let origins = &self.shared.origins;
        // Fails only when the semaphore is closed, which it never is.
        let _permit = origins.small.acquire().await.map_err(|_| Refused::Absent)?;
        let mut turn = origins.turn(path);
        while let Some(origin) = turn.next() {
            let answer = tokio::time::timeout(patience, self.ask_one(origin, path, last)).await;
            let ms = patience.as_millis();
            let late = || Err(OriginError::Failed(format!("did not give {path} within {ms} ms")));
            match answer.unwrap_or_else(|_| late()) {
                Ok(file) => {
                    turn.delivered(origin);
                    return Ok(file);
                }
                Err(error) => turn.failed(origin, &error),
            }
        }
        Err(turn.refused())
    }

    async fn ask_one(
        &self,
        origin: usize,
        path: &str,
        last: Option<&Arc<SmallFile>>,
    ) -> Result<Arc<SmallFile>, OriginError> {
        let origins = &self.shared.origins;
        let name = origins.name(origin).to_owned();
        let last = last.filter(|last| !last.head.absent && last.head.origin == name);
        let mut headers = HeaderMap::new();
        for (header, value) in [
            (IF_NONE_MATCH, last.and_then(|last| last.head.etag.as_ref())),
            (IF_MODIFIED_SINCE, last.and_then(|last| last.head.modified.as_ref())),
        ] {
            if let Some(value) = value.and_then(|value| value.parse().ok()) {
                headers.insert(header, value);
            }
        }
        let mut answer = origins.get(origin, path, None, headers).await?;
        let fail = |text: &str| OriginError::Failed(format!("{path}: {text}"));
        match (answer.status(), last) {
            (StatusCode::NOT_MODIFIED, Some(last)) => return Ok(Arc::clone(last)),
            (StatusCode::OK, _) => {}
            (status, _) => return Err(fail(&format!("answered with status {status}"))),
        }
        let validator = |value: Option<String>| value.filter(|v| v.len() <= VALIDATOR_BYTES_MAX);
        let etag = validator(answer.header(ETAG));
        let modified = validator(answer.header(LAST_MODIFIED));
        let time = Duration::from_millis(self.shared.limits.small_ms_max);
        let announced = answer.header(http::header::CONTENT_LENGTH);
        let body = answer.rest(bytes_max(path), time).await?;
        if announced.is_some_and(|length| length != body.len().to_string()) {
            return Err(fail("is cut short"));
        }
        if hash_in_name(path).is_some_and(|hash| sha256_hex(&body) != hash) {
            return Err(OriginError::Wrong(format!("{path} is not what its name says")));
        }
        Ok(Arc::new(SmallFile::new(path, name, etag, modified, false, body)))
    }

    /// The copy that was kept last.
    async fn last(self: &Arc<Self>, path: &str) -> Option<Arc<SmallFile>> {
        let name = sha256_hex(path.as_bytes());
        {
            let mut inner = self.lock();
            inner.clock += 1;
            let clock = inner.clock;
            let entry = inner.entries.get_mut(&name)?;
            entry.used = clock;
            if let Some(file) = &entry.file {
                return Some(Arc::clone(file));
            }
        }
        let (files, path) = (Arc::clone(self), path.to_owned());
        tokio::task::spawn_blocking(move || files.read(&name, &path)).await.ok()?
    }

    fn read(&self, name: &str, path: &str) -> Option<Arc<SmallFile>> {
        let on_disk = self.dir.join(name);
        let parsed =
            fs::read(&on_disk).ok().and_then(|bytes| SmallFile::parse(&bytes.into(), path));
        let mut inner = self.lock();
        match parsed {
            Some(file) => {
                let file = Arc::new(file);
                self.remember(&mut inner, name, &file);
                drop(inner);
                // So that what is used stays when a restart has forgotten the order.
                let times = FileTimes::new().set_modified(SystemTime::now());
                let noted = fs::File::open(&on_disk).and_then(|file| file.set_times(times));
                if let Err(error) = noted {
                    tracing::debug!(path, %error, "time of use cannot be noted");
                }
                Some(file)
            }
            None => {
                tracing::warn!(path, "cached file is damaged, and goes");
                self.drop_entry(&mut inner, name);
                None
            }
        }
    }

    /// Keeps a file in memory and, as far as the disk takes it, there.
    async fn keep(&self, file: Arc<SmallFile>) {
        let name = sha256_hex(file.head.path.as_bytes());
        let bytes = file.to_bytes();
        let aside = self.dir.join(format!(".{name}"));
        let on_disk = self.dir.join(&name);
        let length = bytes.len() as u64;
        // One writer per name: who asks for the same path shares the answer. Not synced: a torn
        // file is found by its hash.
        let write = move || fs::write(&aside, bytes).and_then(|()| fs::rename(&aside, &on_disk));
        let written = tokio::task::spawn_blocking(write).await;
        let mut inner = self.lock();
        if let Ok(Err(error)) = written {
            tracing::error!(path = %file.head.path, %error, "file cannot be kept on disk");
        }
        let before = inner.entries.get(&name).map_or(0, |entry| entry.bytes);
        inner.bytes = inner.bytes - before + length;
        inner.clock += 1;
        let used = inner.clock;
        let old = inner.entries.insert(name.clone(), Entry { bytes: length, used, file: None });
        let old = old.and_then(|entry| entry.file).map_or(0, |file| file.body.len() as u64);
        inner.memory -= old;
        self.remember(&mut inner, &name, &file);
        self.trim(&mut inner);
    }

    fn remember(&self, inner: &mut Inner, name: &str, file: &Arc<SmallFile>) {
        let Some(entry) = inner.entries.get_mut(name) else { return };
        if entry.file.is_none() {
            inner.memory += file.body.len() as u64;
        }
        entry.file = Some(Arc::clone(file));
        while inner.memory > MEMORY_BYTES_MAX {
            let entries = inner.entries.iter_mut().filter(|(_, entry)| entry.file.is_some());
            let Some((_, oldest)) = entries.min_by_key(|(_, entry)| entry.used) else { break };
            let file = oldest.file.take();
            inner.memory -= file.map_or(0, |file| file.body.len() as u64);
        }
    }

    /// Takes the least recently used out until the rest is within the limits.
    fn trim(&self, inner: &mut Inner) {
        while inner.bytes > self.bytes_max || inner.entries.len() > FILES_MAX {
            let oldest = inner.entries.iter().min_by_key(|(_, entry)| entry.used);
            let Some(name) = oldest.map(|(name, _)| name.clone()) else { break };
            self.drop_entry(inner, &name);
        }
    }

    fn drop_entry(&self, inner: &mut Inner, name: &str) {
        let Some(entry) = inner.entries.remove(name) else { return };
        inner.bytes -= entry.bytes;
        inner.memory -= entry.file.map_or(0, |file| file.body.len() as u64);
        match fs::remove_file(self.dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(name, %error, "cached file cannot be removed");
            }
            _ => {}
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The counts and the entries change together, by code that does not panic in between.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SmallFile {
    fn new(
        path: &str,
        origin: String,
        etag: Option<String>,
        modified: Option<String>,
        absent: bool,
        body: Bytes,
    ) -> Self {
        let blake3 = blake3::hash(&body).to_hex().to_string();
        let path = path.to_owned();
        Self { head: Head { path, origin, etag, modified, absent, blake3 }, body }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(&self.head).expect("texts and a flag are JSON");
        bytes.push(b'\n');
        bytes.extend_from_slice(&self.body);
        bytes
    }

    fn parse(bytes: &Bytes, path: &str) -> Option<Self> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let head: Head = serde_json::from_slice(&bytes[..end]).ok()?;
        let body = bytes.slice(end + 1..);
        let right = head.path == path && head.blake3 == blake3::hash(&body).to_hex().as_str();
        right.then_some(Self { head, body })
    }
}

fn bytes_max(path: &str) -> u64 {
    if path.starts_with("targets/") {
        MANIFEST_BYTES_MAX
    } else if path.ends_with("targets.json") {
        TARGETS_METADATA_BYTES_MAX
    } else {
        METADATA_BYTES_MAX
    }
}

/// The hash in the name of a target: `targets/apps/web/…/<sha256>.manifest.json`.
pub(crate) fn hash_in_name(path: &str) -> Option<&str> {
    let (_, name) = path.strip_prefix("targets/")?.rsplit_once('/')?;
    let (hash, _) = name.split_once('.')?;
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    (hash.len() == 64 && hash.bytes().all(digit)).then_some(hash)
}
