//! A small durable record in a file of its own, such as the host's fences.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

/// The first word of every such file.
const MAGIC: &str = "cohort-durable";

/// The version of the file's form.
const FORM: u32 = 1;

/// The largest record that is read. Fences and counters are a few kilobytes; more than this is a
/// damaged file, and must not fill the memory.
const RECORD_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Why a record could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum DurableFileError {
    /// The file is damaged; it was moved aside for inspection.
    #[error("record {path} is damaged ({what}); moved to {moved_to}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where it is now.
        moved_to: PathBuf,
        /// What was found.
        what: String,
    },
    /// The file could not be read.
    #[error("read record {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The record could not be made durable. Nothing was acknowledged; the process must stop.
    #[error("write record {path}")]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An earlier write failed, so that nothing is written any more.
    #[error(
        "record {path} takes no more writes because an earlier one failed; this process must stop"
    )]
    Poisoned {
        /// The file.
        path: PathBuf,
    },
}

/// A value of type `T` in one file, replaced as a whole.
///
/// The file is a line of text followed by JSON, so that a person can read it:
///
/// ```text
/// cohort-durable 1 crc32=1c291ca3 len=14\n
/// {"fence":"7"}\n
/// ```
///
/// The checksum and the length are of everything after the first line. A new value is written to
/// `<name>.new`, synced, renamed over the old one, and the folder is synced: after a crash at any
/// instruction there is the old value or the new one. After a failed write no more are taken.
#[derive(Debug)]
pub struct DurableFile<T> {
    path: PathBuf,
    poisoned: bool,
    value: PhantomData<fn(T) -> T>,
}

impl<T: Serialize + DeserializeOwned> DurableFile<T> {
    /// Opens the record at `path` and reads it; `None` when there is none yet. The folder must
    /// exist.
    ///
    /// # Errors
    /// [`DurableFileError::Damaged`] when it does not have the form above or is not a `T`; it is
    /// renamed to `<name>.damaged-<n>` then, and the next open finds no record.
    pub fn open(path: impl Into<PathBuf>) -> Result<(Self, Option<T>), DurableFileError> {
        let path = path.into();
        let read_error = |source| DurableFileError::Read { path: path.clone(), source };
        let value = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(read_error(error)),
            Ok(metadata) => {
                let parsed = if metadata.len() > RECORD_BYTES_MAX {
                    Err(format!("{} bytes long", metadata.len()))
                } else {
                    parse(&fs::read(&path).map_err(read_error)?)
                };
                match parsed {
                    Ok(value) => Some(value),
                    Err(what) => {
                        let moved_to = move_aside(&path).map_err(read_error)?;
                        return Err(DurableFileError::Damaged { path, moved_to, what });
                    }
                }
            }
        };
        Ok((DurableFile { path, poisoned: false, value: PhantomData }, value))
    }

    /// Replaces the record; it is durable when the call returns.
    ///
    /// # Errors
    /// [`DurableFileError::Write`], and [`DurableFileError::Poisoned`] ever after.
    pub fn save(&mut self, value: &T) -> Result<(), DurableFileError> {
        if self.poisoned {
            return Err(DurableFileError::Poisoned { path: self.path.clone() });
        }
        let result = form(value).and_then(|bytes| replace(&self.path, &bytes));
        result.map_err(|source| {
            self.poisoned = true;
            DurableFileError::Write { path: self.path.clone(), source }
        })
    }

    /// Where the record is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn form<T: Serialize>(value: &T) -> io::Result<Vec<u8>> {
    let mut body = serde_json::to_vec(value)?;
    body.push(b'\n');
    let crc = crc32fast::hash(&body);
    let mut bytes = format!("{MAGIC} {FORM} crc32={crc:08x} len={}\n", body.len()).into_bytes();
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    let end = bytes.iter().position(|&byte| byte == b'\n').ok_or("no first line")?;
    let (line, body) = (&bytes[..end], &bytes[end + 1..]);
    let expected = format!("{MAGIC} {FORM} crc32={:08x} len={}", crc32fast::hash(body), body.len());
    if line != expected.as_bytes() {
        return Err("its first line does not match its content".to_owned());
    }
    serde_json::from_slice(body).map_err(|error| error.to_string())
}

fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".new");
    let aside = PathBuf::from(aside);
    let mut file = File::create(&aside)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&aside, path)?;
    sync_folder_of(path)
}

/// Syncs the folder that holds `path`, so that a rename in it survives a crash.
pub(crate) fn sync_folder_of(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

/// Renames a damaged file to `<name>.damaged-<n>`, with the first `n` that is free.
pub(crate) fn move_aside(path: &Path) -> io::Result<PathBuf> {
    for n in 1..u32::MAX {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{n}"));
        let moved_to = PathBuf::from(name);
        if !moved_to.try_exists()? {
            fs::rename(path, &moved_to)?;
            sync_folder_of(path)?;
            return Ok(moved_to);
        }
    }
    Err(io::Error::other("no free name to move a damaged file to"))
}
