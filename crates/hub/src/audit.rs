//! The audit trail: files of lines in `audit/`, each named by the number of its first line.
//!
//! A handler records what it is about to change, and changes it once the entry is durable: a full
//! disk or a crash leaves no change without its entry. A request that fails after its entry gets
//! a second one that says so; a crash can leave an entry whose change was not made. What groups
//! decide is in their own logs (`rollout history`).

use std::fs::{self, File};
use std::future::Future;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cohort_base::{FileError, OnPath as _, chain, durable};
use cohort_wire::audit::{AUDIT_LINES_MAX, AuditEntry, AuditPage, BrokenChain, ChainEnd};
use cohort_wire::http::ApiError;
use parking_lot::Mutex;

use crate::app::{blocking, now};
use crate::refusal::Refusal;

/// A file is full at this size, in bytes: 20,000 entries.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Files that are kept: a gigabyte, two and a half million entries. The oldest goes.
const FILES_MAX: usize = 128;

tokio::task_local! {
    static RECORDER: Recorder;
}

/// Who made a request.
#[derive(Debug, Clone)]
pub(crate) struct Author {
    pub(crate) by: String,
    pub(crate) proof: String,
    pub(crate) from: String,
}

/// Writes what one request changes.
#[derive(Debug, Clone)]
pub(crate) struct Recorder {
    log: Arc<AuditLog>,
    author: Author,
    /// The number of the last entry.
    last: Arc<Mutex<Option<u64>>>,
}

impl Recorder {
    pub(crate) fn new(log: &Arc<AuditLog>, author: Author) -> Self {
        Recorder { log: Arc::clone(log), author, last: Arc::default() }
    }

    /// Handles a request; then says of its entry if the request failed.
    pub(crate) async fn around<T>(
        self,
        work: impl Future<Output = T>,
        failed: impl FnOnce(&T) -> Option<String>,
    ) -> T {
        let done = RECORDER.scope(self.clone(), work).await;
        let entry = *self.last.lock();
        if let Some(entry) = entry
            && let Some(failed) = failed(&done)
        {
            let what = format!("entry {entry} failed: {failed}");
            // Nothing depends on it; it is logged.
            let _ = blocking(move || self.record(what)).await;
        }
        done
    }

    /// Adds an entry; durable on return. Blocking.
    pub(crate) fn record(&self, what: String) -> Result<(), Unrecorded> {
        let added = self.log.add(self.author.clone(), what, now().as_secs());
        let seq = added.map_err(|error| {
            tracing::error!(reason = chain(&error), "cannot write the audit trail");
            Unrecorded(error)
        })?;
        *self.last.lock() = Some(seq);
        Ok(())
    }
}

/// What records for the request that is being handled.
pub(crate) fn recorder() -> Recorder {
    RECORDER.with(Recorder::clone)
}

/// Records what the request that is being handled is about to change.
///
/// # Errors
/// If the disk fails: then the change must not be made.
pub(crate) async fn record(what: impl Into<String>) -> Result<(), Refusal> {
    let (recorder, what) = (recorder(), what.into());
    Ok(blocking(move || recorder.record(what)).await??)
}

/// An entry could not be written.
#[derive(Debug, thiserror::Error)]
#[error("the audit trail cannot be written, so nothing was changed")]
pub(crate) struct Unrecorded(#[source] FileError);

impl From<Unrecorded> for Refusal {
    fn from(error: Unrecorded) -> Self {
        let refusal = ApiError::unavailable("storage", chain(&error));
        Refusal(refusal.hint("make room on the hub's disk, then run the command again"))
    }
}

/// The trail on disk.
#[derive(Debug)]
pub(crate) struct AuditLog {
    dir: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    end: ChainEnd,
    /// The file that is written to, and its length in bytes.
    file: Option<(File, u64)>,
}

impl AuditLog {
    /// Opens the directory; creates it if missing. A line that a crash has cut short was never
    /// acknowledged, and is removed.
    pub(crate) fn open(dir: &Path) -> Result<Self, AuditError> {
        durable::private_folder(dir).on_path("create directory", dir)?;
        durable::sweep(dir).on_path("clean up", dir)?;
        let (mut end, mut file) = (ChainEnd::default(), None);
        for path in files(dir)?.iter().rev() {
            let bytes = fs::read(path).on_path("read", path)?;
            let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            if file.is_none() {
                let open = File::options().append(true).open(path).on_path("open", path)?;
                open.set_len(whole as u64).on_path("write", path)?;
                durable::sync(&open).on_path("write", path)?;
                file = Some((open, whole as u64));
            }
            if let Some(last) = lines(&bytes[..whole]).last() {
                let damaged = |source| AuditError::Damaged { path: path.clone(), source };
                end = ChainEnd::at(last).map_err(damaged)?.0;
                break;
            }
        }
        Ok(Self { dir: dir.to_owned(), state: Mutex::new(State { end, file }) })
    }

    /// Adds an entry, and returns its number; durable on return. Blocking.
    pub(crate) fn add(&self, author: Author, what: String, at: u64) -> Result<u64, FileError> {
        let mut state = self.state.lock();
        let Author { by, proof, from } = author;
        let (seq, before) = (state.end.seq + 1, state.end.hash.clone());
        let entry = AuditEntry { seq, at, by, proof, from, what, before };
        let line = serde_json::to_string(&entry).expect("texts and numbers become JSON");
        let (end, _) = ChainEnd::at(&line).expect("an entry is read as it was written");
        let (mut file, bytes) = match state.file.take() {
            Some((file, bytes)) if bytes < FILE_BYTES_MAX => (file, bytes),
            _ => (self.next_file(seq)?, 0),
        };
        let text = line + "\n";
        let written = file.write_all(text.as_bytes()).and_then(|()| durable::sync(&file));
        if let Err(error) = written {
            // Half a line must not be continued by the next one.
            let cut = file.set_len(bytes);
            state.file = cut.is_ok().then_some((file, bytes));
            return Err(error).on_path("write to", &self.dir);
        }
        state.file = Some((file, bytes + text.len() as u64));
        state.end = end;
        Ok(seq)
    }

    fn next_file(&self, first: u64) -> Result<File, FileError> {
        let path = self.dir.join(format!("{first:020}.jsonl"));
        // A failed write may have left it.
        if !path.exists() {
            durable::create(&path, b"", durable::SECRET).on_path("create", &path)?;
        }
        let all = files(&self.dir)?;
        for old in all.iter().take(all.len().saturating_sub(FILES_MAX)) {
            fs::remove_file(old).on_path("remove", old)?;
        }
        let open = File::options().append(true).open(&path).on_path("open", &path)?;
        open.set_len(0).on_path("write", &path)?;
        Ok(open)
    }

    /// The lines after a number. Blocking.
    pub(crate) fn after(&self, seq: u64) -> Result<AuditPage, FileError> {
        let last = self.state.lock().end.seq;
        let all = files(&self.dir)?;
        let holds =
            |path: &PathBuf| first_of(path).is_some_and(|first| first <= seq.saturating_add(1));
        let start = all.iter().rposition(holds).unwrap_or(0);
        let mut found = Vec::new();
        for path in &all[start..] {
            let bytes = fs::read(path).on_path("read", path)?;
            for line in lines(&bytes) {
                let number = ChainEnd::at(line).map_or(seq.saturating_add(1), |(at, _)| at.seq);
                // One that is being written is not there yet.
                if number > seq && number <= last {
                    found.push(line.to_owned());
                }
                if found.len() == AUDIT_LINES_MAX {
                    return Ok(AuditPage { lines: found, last });
                }
            }
        }
        Ok(AuditPage { lines: found, last })
    }
}

fn lines(bytes: &[u8]) -> impl DoubleEndedIterator<Item = &str> {
    let texts = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
    // Something else is no entry, and must not be passed over.
    texts.map(|line| std::str::from_utf8(line).unwrap_or("\u{fffd}"))
}

fn first_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_suffix(".jsonl")?.parse().ok()
}

/// The files, oldest first.
fn files(dir: &Path) -> Result<Vec<PathBuf>, FileError> {
    let entries = fs::read_dir(dir).on_path("read directory", dir)?;
    let paths: io::Result<Vec<PathBuf>> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect();
    let mut paths = paths.on_path("read directory", dir)?;
    paths.retain(|path| first_of(path).is_some());
    paths.sort();
    Ok(paths)
}

/// Why the trail cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("the last line of {} is damaged: move the file away, and keep it", path.display())]
    Damaged {
        path: PathBuf,
        #[source]
        source: BrokenChain,
    },
}

#[cfg(test)]
#[path = "audit_test.rs"]
mod audit_test;
