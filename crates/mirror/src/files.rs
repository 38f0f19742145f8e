//! Signed metadata and targets: small files, stored as the last copy received from an origin.
//!
//! A file below `metadata/` is served only after asking an origin whether it has changed; if no
//! origin responds, the last copy is served, because readers judge its freshness themselves. *There
//! is none* is a response too: it ends a reader's search for a newer root. A target has its own
//! hash in its name and never changes, so it is checked once and then kept.
//!
//! On disk, each is one file, named by the SHA-256 of its path: one line of JSON ([`Head`]), then
//! the content. Every request reads it from there, in practice from the page cache.

use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use cohort_artifact::RepositoryFile;
use cohort_artifact::client::{Content, Wanted};
use cohort_identity::sha256_hex;
use serde::{Deserialize, Serialize};

use crate::bounded::{Bounded, Usage};
use crate::cache::Shared;
use crate::joint::Joint;
use crate::origins::{OriginError, Refused};

/// Small files on disk, in number and bytes. Generations of metadata pile up, and only the newest
/// are requested.
const FILES_MAX: u64 = 20_000;
const FILES_BYTES_MAX: u64 = 256 << 20;

/// Small files never use more than this part of the cache.
const FILES_SHARE: u64 = 4;

/// Validators longer than this, in bytes, are not stored.
const VALIDATOR_BYTES_MAX: usize = 256;

const HEAD_SCHEMA: u32 = 1;

/// Most space for small files in a cache of this size, in bytes.
pub(crate) fn files_bytes_max(cache_bytes: u64) -> u64 {
    FILES_BYTES_MAX.min(cache_bytes / FILES_SHARE)
}

/// A file's metadata, its first line on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Head {
    /// Version of the format; a file of another version is fetched again.
    schema: u32,
    path: String,
    /// The origin it came from: its tag means nothing to another.
    origin: String,
    etag: Option<String>,
    modified: Option<String>,
    /// The origin has no such file.
    absent: bool,
    /// Hash of the content: detects disk corruption.
    blake3: String,
}

/// A small file in memory, with its metadata.
#[derive(Debug)]
pub(crate) struct SmallFile {
    head: Head,
    pub(crate) body: Bytes,
}

/// The small files of a cache.
pub(crate) struct Files {
    cache: Arc<Shared>,
    disk: Bounded,
    asking: Arc<Joint<Arc<SmallFile>>>,
}

impl Files {
    /// Takes over the directory `files` of a cache. Blocking.
    pub(crate) fn open(dir: PathBuf, bytes_max: u64, cache: Arc<Shared>) -> io::Result<Arc<Self>> {
        let disk = Bounded::open(dir, Usage { files: FILES_MAX, bytes: bytes_max }, 0)?;
        let asking = Joint::new(cache.limits.absent_for);
        Ok(Arc::new(Self { cache, disk, asking }))
    }

    /// A file by its path below the repository.
    pub(crate) async fn get(
        self: &Arc<Self>,
        path: &str,
        kind: RepositoryFile,
    ) -> Result<Arc<SmallFile>, Refused> {
        let (files, owned) = (Arc::clone(self), path.to_owned());
        self.asking.ask(path, || async move { files.current(owned, kind).await }).await
    }

    /// The copy on disk if it cannot have changed, else an origin's response, else that copy.
    async fn current(
        self: Arc<Self>,
        path: String,
        kind: RepositoryFile,
    ) -> Result<Arc<SmallFile>, Refused> {
        let last = self.last(&path).await;
        if let Some(last) = last.as_ref().filter(|_| matches!(kind, RepositoryFile::Target(_))) {
            return Ok(Arc::clone(last));
        }
        self.cache.metrics.revalidations.inc();
        match (self.ask_origins(&path, &kind, last.as_ref()).await, last) {
            (Ok(None), Some(last)) => Ok(last),
            (Ok(None), None) => Err(Refused::Failed("unchanged, but there is no copy".to_owned())),
            (Ok(Some(file)), _) => Ok(self.keep(file).await),
            (Err(Refused::Absent), _) => {
                // The end of the chain of roots must be known even if the origin is unreachable.
                // Nobody has to ask beyond it.
                if self.ends_roots(&kind).await {
                    self.keep(SmallFile::absent(&path)).await;
                }
                Err(Refused::Absent)
            }
            (Err(refused), Some(last)) => {
                self.cache.metrics.last_copies.inc();
                tracing::debug!(path, ?refused, "no origin responds, serving the last copy");
                if last.head.absent { Err(Refused::Absent) } else { Ok(last) }
            }
            (Err(refused), None) => Err(refused),
        }
    }

    /// Whether this is the root after one that there is.
    async fn ends_roots(self: &Arc<Self>, kind: &RepositoryFile) -> bool {
        let RepositoryFile::Root(Some(version)) = kind else { return false };
        let before = format!("metadata/{}.root.json", version.saturating_sub(1));
        if let Some(last) = self.last(&before).await {
            return !last.head.absent;
        }
        // Readers ask for the root after theirs only.
        match self.ask_origins(&before, kind, None).await {
            Ok(Some(file)) => {
                self.keep(file).await;
                true
            }
            Ok(None) | Err(_) => false,
        }
    }

    /// The response of the first origin that responds; `None` if the last copy is still current.
    async fn ask_origins(
        &self,
        path: &str,
        kind: &RepositoryFile,
        last: Option<&Arc<SmallFile>>,
    ) -> Result<Option<SmallFile>, Refused> {
        let (origins, limits) = (&self.cache.origins, &self.cache.limits);
        let patience = if last.is_some() { limits.revalidate_max } else { limits.small_max };
        let patience = patience / origins.count();
        let ask = |origin| async move {
            let answer = tokio::time::timeout(patience, self.ask_one(origin, path, kind, last));
            answer.await.unwrap_or(Err(OriginError::Late(patience)))
        };
        origins.first(path, ask).await
    }

    async fn ask_one(
        &self,
        origin: usize,
        path: &str,
        kind: &RepositoryFile,
        last: Option<&Arc<SmallFile>>,
    ) -> Result<Option<SmallFile>, OriginError> {
        let origins = &self.cache.origins;
        let name = origins.name(origin);
        let ours = last.map(|last| &last.head);
        let ours = ours.filter(|head| !head.absent && head.origin == name);
        let wanted = Wanted {
            range: None,
            etag: ours.and_then(|head| head.etag.as_deref()),
            modified: ours.and_then(|head| head.modified.as_deref()),
        };
        let mut answer = origins.get(origin, path, &wanted).await?;
        if answer.content == Content::Unchanged {
            return Ok(None);
        }
        let body = answer.rest(kind.bytes_max(), self.cache.limits.small_max).await?;
        self.cache.metrics.origin_bytes.inc_by(body.len() as u64);
        if let RepositoryFile::Target(hash) = kind
            && sha256_hex(&body) != hash.as_str()
        {
            return Err(OriginError::wrong(format!("{path} does not have the hash in its name")));
        }
        let short = |text: &String| text.len() <= VALIDATOR_BYTES_MAX;
        let head = Head {
            schema: HEAD_SCHEMA,
            path: path.to_owned(),
            origin: name.to_owned(),
            etag: answer.etag.filter(short),
            modified: answer.modified.filter(short),
            absent: false,
            blake3: blake3::hash(&body).to_hex().to_string(),
        };
        Ok(Some(SmallFile { head, body }))
    }

    /// The last copy on disk.
    async fn last(self: &Arc<Self>, path: &str) -> Option<Arc<SmallFile>> {
        let (files, path) = (Arc::clone(self), path.to_owned());
        let read = tokio::task::spawn_blocking(move || files.read(&path).map(Arc::new));
        read.await.ok()?
    }

    /// Reads a copy and records its use; `None` if there is no intact one. Blocking.
    fn read(&self, path: &str) -> Option<SmallFile> {
        let name = sha256_hex(path.as_bytes());
        let bytes = fs::read(self.disk.path(&name)).ok()?;
        let parsed = SmallFile::parse(&bytes.into(), path);
        if parsed.is_none() {
            tracing::warn!(path, "removing corrupt cached file");
            self.disk.remove(&name);
        } else {
            self.disk.note_use(&name);
        }
        parsed
    }

    /// Stores a file; a disk failure is only logged.
    async fn keep(self: &Arc<Self>, file: SmallFile) -> Arc<SmallFile> {
        let (files, file) = (Arc::clone(self), Arc::new(file));
        let kept = Arc::clone(&file);
        // One writer per path: concurrent requests for it share the response.
        let write =
            move || files.disk.write(&sha256_hex(kept.head.path.as_bytes()), &kept.to_bytes());
        let written = tokio::task::spawn_blocking(write).await;
        if let Ok(Err(error)) = written {
            tracing::error!(path = %file.head.path, %error, "cannot store file on disk");
        }
        file
    }
}

impl SmallFile {
    fn absent(path: &str) -> Self {
        let head = Head {
            schema: HEAD_SCHEMA,
            path: path.to_owned(),
            origin: String::new(),
            etag: None,
            modified: None,
            absent: true,
            blake3: blake3::hash(&[]).to_hex().to_string(),
        };
        Self { head, body: Bytes::new() }
    }

    /// The tag for readers: the content's own, whichever origin it came from.
    pub(crate) fn etag(&self) -> String {
        format!("\"{}\"", &self.head.blake3[..32])
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(&self.head).expect("texts and a flag are JSON");
        bytes.push(b'\n');
        bytes.extend_from_slice(&self.body);
        bytes
    }

    pub(crate) fn parse(bytes: &Bytes, path: &str) -> Option<Self> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let head: Head = serde_json::from_slice(&bytes[..end]).ok()?;
        let body = bytes.slice(end + 1..);
        let right = head.schema == HEAD_SCHEMA
            && head.path == path
            && head.blake3 == blake3::hash(&body).to_hex().as_str();
        right.then_some(Self { head, body })
    }
}

#[cfg(test)]
#[path = "files_test.rs"]
mod files_test;
