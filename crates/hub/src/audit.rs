//! The audit trail: files of lines in `audit/`, each named by the number of its first line.
//!
//! A handler notes what it has changed; before the caller hears of it, the entry is durable. What
//! groups decide is in their own logs (`rollout history`).

use std::cell::RefCell;
use std::fs::{self, File};
use std::future::Future;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use cohort_base::{FileError, OnPath as _, durable};
use cohort_wire::audit::{AUDIT_LINES_MAX, AuditEntry, AuditPage, BrokenChain, ChainEnd};
use parking_lot::Mutex;

/// A file is full at this size, in bytes: 20,000 entries.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// Files that are kept: a gigabyte, two and a half million entries. The oldest goes.
const FILES_MAX: usize = 128;

tokio::task_local! {
    static NOTED: RefCell<Option<String>>;
}

/// Notes what the request that is being handled has changed.
pub(crate) fn note(what: impl Into<String>) {
    // Outside of a request, there is nobody to name.
    let _ = NOTED.try_with(|noted| *noted.borrow_mut() = Some(what.into()));
}

/// Handles a request; returns what it has noted, too.
pub(crate) async fn noting<T>(work: impl Future<Output = T>) -> (T, Option<String>) {
    let work = async {
        let done = work.await;
        (done, NOTED.with(RefCell::take))
    };
    NOTED.scope(RefCell::default(), work).await
}

/// Who made a request.
pub(crate) struct Author {
    pub(crate) by: String,
    pub(crate) proof: String,
    pub(crate) from: String,
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

    /// Adds an entry; durable on return. Blocking.
    pub(crate) fn add(&self, author: Author, what: String, at: u64) -> Result<(), FileError> {
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
        Ok(())
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
