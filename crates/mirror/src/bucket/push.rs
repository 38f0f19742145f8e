//! Copying the local repository to a bucket.
//!
//! A push can be interrupted anywhere and repeated: what arrived is not sent again, and readers see
//! the old repository until the last write, the timestamp.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use cohort_artifact::{
    RepositoryFile, digest_of, digest_of_bytes, repository_files, root_of_units,
};
use cohort_base::OnPath as _;
use cohort_identity::sha256_hex;
use futures_util::stream::FuturesUnordered;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::buffered::BufWriter;
use object_store::{
    Attribute, Attributes, Error, ObjectStoreExt as _, PutMode, PutOptions, UpdateVersion,
};
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::plan::{FIRST_ROOT, LocalFile, TIMESTAMP, next_in_chain, stages, version_of};
use super::{Bucket, BucketError};

/// Files above this size are sent in parts of this size, in bytes. Stores require at least 5 MiB,
/// parts of equal size, and at most 10,000 parts.
const PART_BYTES: usize = 8 << 20;

const _: () = assert!(
    cohort_artifact::ARTIFACT_BYTES_MAX / PART_BYTES as u64 <= 10_000,
    "the largest artifact fits into the number of parts that stores take"
);

/// Parts of one file in flight: 32 MiB of memory, enough for a gigabit over a long distance. Only
/// one such file at a time.
const PARTS_AT_ONCE: usize = 4;

/// Small files in flight: each costs a round trip.
const FILES_AT_ONCE: usize = 8;

/// Most objects below the prefix. A repository of a hundred thousand releases has fewer; more means
/// a wrong prefix, and would fill the memory.
const OBJECTS_MAX: usize = 1_000_000;

/// Result of a push.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Pushed {
    pub files: u64,
    pub bytes: u64,
    /// Files that the bucket already had.
    pub there: u64,
    /// Version of the timestamp that readers now see.
    pub timestamp: u64,
}

/// Copies the repository in `dir` to a bucket. `all` also sends files that the bucket has.
/// `progress` gets the number of bytes of every piece sent.
///
/// The repository may change meanwhile: readers of the bucket get the state that its timestamp
/// named at the start.
///
/// # Errors
/// [`BucketError`]. Readers then see the bucket unchanged; calling it again resumes.
pub async fn push(
    dir: &Path,
    bucket: &Bucket,
    all: bool,
    progress: &(dyn Fn(u64) + Sync),
) -> Result<Pushed, BucketError> {
    // Before the files are listed, so that all files it names are among them.
    let ours = read_metadata(dir, TIMESTAMP).await?;
    let snapshot = next_in_chain(&ours, "snapshot").ok_or_else(|| unreadable(dir, TIMESTAMP))?;
    let bytes = read_metadata(dir, &snapshot).await?;
    let targets = next_in_chain(&bytes, "targets").ok_or_else(|| unreadable(dir, &snapshot))?;
    let first_root = read_metadata(dir, FIRST_ROOT).await?;
    let theirs = bucket.read_small(TIMESTAMP).await?;
    if let Some((root, _)) = bucket.read_small(FIRST_ROOT).await?
        && root != first_root
    {
        return Err(BucketError::Foreign { bucket: bucket.name.clone() });
    }
    let (version, is_new) = (version_of(&ours), theirs.as_ref().is_none_or(|t| t.0 != ours));
    if let Some((bytes, _)) = theirs.as_ref().filter(|_| is_new)
        && version_of(bytes) >= version
    {
        let (bucket, theirs) = (bucket.name.clone(), version_of(bytes));
        return Err(BucketError::Ahead { bucket, theirs, ours: version });
    }
    let local = local_files(dir).await?;
    let there = bucket.list().await?;
    let current = match is_new {
        true => vec![snapshot, targets, "metadata/root.json".to_owned()],
        false => Vec::new(),
    };
    let total = local.len() as u64;
    let mut pushed = Pushed { timestamp: version, ..Pushed::default() };
    for stage in stages(local, &there, &current, all) {
        let (small, large): (Vec<_>, Vec<_>) =
            stage.into_iter().partition(|file| file.length <= PART_BYTES as u64);
        pushed.files += (small.len() + large.len()) as u64;
        pushed.bytes += small.iter().chain(&large).map(|file| file.length).sum::<u64>();
        let mut sending = FuturesUnordered::new();
        for file in &small {
            sending.push(bucket.send(dir, file, progress));
            if sending.len() >= FILES_AT_ONCE {
                sending.try_next().await?;
            }
        }
        while sending.try_next().await?.is_some() {}
        for file in &large {
            bucket.send(dir, file, progress).await?;
        }
    }
    if is_new {
        let length = ours.len() as u64;
        bucket.write_timestamp(ours, theirs.map(|(_, version)| version)).await?;
        progress(length);
        pushed.files += 1;
        pushed.bytes += length;
    }
    pushed.there = total.saturating_sub(pushed.files);
    Ok(pushed)
}

/// Copies one file of the repository in `dir` to a bucket that lacks it, for a publisher that sends
/// files one by one, the timestamp last (with [`push`]). Files that readers do not use are skipped.
///
/// # Errors
/// [`BucketError`].
pub async fn push_file(dir: &Path, bucket: &Bucket, relative: &str) -> Result<(), BucketError> {
    if RepositoryFile::of(relative).is_none_or(|file| file == RepositoryFile::Timestamp) {
        return Ok(());
    }
    let path = dir.join(relative);
    let length = tokio::fs::metadata(&path).await.on_path("read", &path)?.len();
    let is_there = match bucket.store.head(&bucket.path(relative)?).await {
        Ok(about) => about.size == length,
        Err(Error::NotFound { .. }) => false,
        // A store's response for a missing file without permission to list.
        Err(Error::PermissionDenied { .. }) => false,
        Err(error) => return Err(bucket.failed(relative, error)),
    };
    // Files named by a number are sent again: see `plan::stages`.
    if is_there && !relative.starts_with("metadata/") {
        return Ok(());
    }
    bucket.send(dir, &LocalFile { path: relative.to_owned(), length }, &|_| ()).await
}

impl Bucket {
    /// A small file of the bucket, and its version for a write that replaces only that one.
    async fn read_small(
        &self,
        relative: &str,
    ) -> Result<Option<(Bytes, UpdateVersion)>, BucketError> {
        let failed = |error| self.failed(relative, error);
        let result = match self.store.get(&self.path(relative)?).await {
            Ok(result) => result,
            Err(Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let version = UpdateVersion {
            e_tag: result.meta.e_tag.clone(),
            version: result.meta.version.clone(),
        };
        if RepositoryFile::of(relative).is_none_or(|file| result.meta.size > file.bytes_max()) {
            // Not ours: it is replaced.
            return Ok(Some((Bytes::new(), version)));
        }
        Ok(Some((result.bytes().await.map_err(failed)?, version)))
    }

    /// All files in the bucket, with their lengths.
    async fn list(&self) -> Result<BTreeMap<String, u64>, BucketError> {
        let mut found = BTreeMap::new();
        for folder in ["blobs", "targets", "metadata"] {
            let mut objects = self.store.list(Some(&self.path(folder)?));
            while let Some(object) = objects.next().await {
                let object = object.map_err(|error| self.failed(folder, error))?;
                let full = object.location.as_ref();
                let relative = full.strip_prefix(&self.prefix).unwrap_or(full);
                found.insert(relative.trim_start_matches('/').to_owned(), object.size);
                if found.len() > OBJECTS_MAX {
                    let bucket = self.name.clone();
                    return Err(BucketError::TooMany { bucket, objects_max: OBJECTS_MAX });
                }
            }
        }
        Ok(found)
    }

    /// Sends a file, a long one in parts, and completes it only if its content matches its name.
    async fn send(
        &self,
        dir: &Path,
        file: &LocalFile,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(), BucketError> {
        let upload =
            BufWriter::with_capacity(Arc::clone(&self.store), self.path(&file.path)?, PART_BYTES);
        let mut upload =
            upload.with_attributes(self.attributes(&file.path)).with_max_concurrency(PARTS_AT_ONCE);
        if let Err(error) = self.send_parts(dir, file, &mut upload, progress).await {
            // Parts of an unfinished upload cost money.
            if let Err(error) = upload.abort().await {
                tracing::warn!(object = file.path, %error, "cannot remove unfinished upload");
            }
            return Err(error);
        }
        let failed = |error| Error::Generic { store: "bucket", source: Box::new(error) };
        let sent = upload.shutdown().await.map_err(|error| error.downcast().unwrap_or_else(failed));
        sent.map_err(|error| self.failed(&file.path, error))
    }

    async fn send_parts(
        &self,
        dir: &Path,
        file: &LocalFile,
        upload: &mut BufWriter,
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<(), BucketError> {
        let path = dir.join(&file.path);
        let mut from = File::open(&path).await.on_path("read", &path)?;
        let (mut hasher, mut sent) = (blake3::Hasher::new(), 0);
        let small = file.length <= PART_BYTES as u64;
        let size = usize::try_from(file.length).unwrap_or(PART_BYTES).min(PART_BYTES);
        loop {
            let mut part = Vec::with_capacity(size);
            (&mut from)
                .take(PART_BYTES as u64)
                .read_to_end(&mut part)
                .await
                .on_path("read", &path)?;
            if part.is_empty() {
                break;
            }
            if small && !is_right(&file.path, &part) {
                return Err(wrong(path));
            }
            hasher.update(&part);
            let length = part.len() as u64;
            upload.put(part.into()).await.map_err(|error| self.failed(&file.path, error))?;
            progress(length);
            sent += length;
        }
        // Only artifacts are longer than a part.
        let blob = || RepositoryFile::Blob(digest_of(&hasher.finalize()));
        let right = if small { sent > 0 } else { RepositoryFile::of(&file.path) == Some(blob()) };
        if right { Ok(()) } else { Err(wrong(path)) }
    }

    /// The write that readers see. `replaces` is the version found when this push started.
    async fn write_timestamp(
        &self,
        bytes: Bytes,
        replaces: Option<UpdateVersion>,
    ) -> Result<(), BucketError> {
        let failed = |error| self.failed(TIMESTAMP, error);
        let path = self.path(TIMESTAMP)?;
        let write = async |mode: PutMode| {
            let attributes = self.attributes(TIMESTAMP);
            let options = PutOptions { mode, attributes, ..PutOptions::default() };
            self.store.put_opts(&path, bytes.clone().into(), options).await.map(|_| ())
        };
        let mode = match replaces {
            None => PutMode::Create,
            Some(version) if version.e_tag.is_none() => PutMode::Overwrite,
            Some(version) => PutMode::Update(version),
        };
        match write(mode).await {
            Ok(()) => Ok(()),
            // A store without conditional writes, or configured not to use them.
            Err(Error::NotImplemented { .. }) => write(PutMode::Overwrite).await.map_err(failed),
            Err(Error::Precondition { .. } | Error::AlreadyExists { .. }) => {
                // It may be our own write, retried after its response was lost.
                let now = self.read_small(TIMESTAMP).await?;
                match now.is_some_and(|(now, _)| now == bytes) {
                    true => Ok(()),
                    false => Err(BucketError::Raced { bucket: self.name.clone() }),
                }
            }
            Err(error) => Err(failed(error)),
        }
    }

    fn attributes(&self, relative: &str) -> Attributes {
        let mut attributes = Attributes::new();
        if let Some(file) = RepositoryFile::of(relative).filter(|_| self.keeps_attributes) {
            attributes.insert(Attribute::CacheControl, file.cache_control().into());
            attributes.insert(Attribute::ContentType, file.content_type().into());
        }
        attributes
    }
}

/// Whether a file's content matches its name: a corrupt one is not sent.
fn is_right(relative: &str, bytes: &[u8]) -> bool {
    match RepositoryFile::of(relative) {
        Some(RepositoryFile::Blob(root)) => digest_of_bytes(bytes) == root,
        Some(RepositoryFile::Units(root)) => root_of_units(bytes) == Some(root),
        Some(RepositoryFile::Target(hash)) => sha256_hex(bytes) == hash.as_str(),
        Some(_) => version_of(bytes) > 0,
        None => false,
    }
}

async fn read_metadata(dir: &Path, relative: &str) -> Result<Bytes, BucketError> {
    let path = dir.join(relative);
    match tokio::fs::read(&path).await {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let file = if relative == FIRST_ROOT { FIRST_ROOT } else { TIMESTAMP };
            Err(BucketError::NoRepository { path: dir.to_owned(), file })
        }
        read => Ok(read.on_path("read", &path)?.into()),
    }
}

fn wrong(path: PathBuf) -> BucketError {
    BucketError::Damaged { path, reason: "is not what its name says" }
}

fn unreadable(dir: &Path, relative: &str) -> BucketError {
    BucketError::Damaged { path: dir.join(relative), reason: "is not signed metadata" }
}

/// All local files of the repository.
async fn local_files(dir: &Path) -> Result<Vec<LocalFile>, BucketError> {
    let folder = dir.to_owned();
    let found = tokio::task::spawn_blocking(move || repository_files(&folder)).await;
    let found = found.map_err(BucketError::Task)??;
    Ok(found.into_iter().map(|(path, length)| LocalFile { path, length }).collect())
}
