//! A small durable record in its own file, such as the host's fences.

use std::fs;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use cohort_base::{Cause, FileError, OnPath as _, durable};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The name and version of the file format.
const FORMAT: &str = "cohort-durable 1";

/// In bytes. Fences and counters take a few kilobytes. A larger file is damaged and must not fill
/// memory.
const RECORD_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Why reading or writing a record failed.
#[derive(Debug, thiserror::Error)]
pub enum DurableFileError {
    /// The file is damaged; it is moved aside for inspection.
    #[error("record {} is damaged; moved to {}", path.display(), moved_to.display())]
    Damaged { path: PathBuf, moved_to: PathBuf, source: Cause },
    /// Another version of Cohort wrote it. The file is unchanged.
    #[error(
        "record {} has version {found}, and this version of Cohort reads {supported}: run the one \
         that wrote it", path.display()
    )]
    Version { path: PathBuf, found: u32, supported: u32 },
    /// Reading the file failed. It is unchanged.
    #[error("record is not readable")]
    Read(#[source] FileError),
    /// The record may not be durable. The write is not acknowledged; the process must stop.
    #[error("record is not written")]
    Write(#[source] FileError),
    #[error("record {} is read-only after a failed write; this process must stop", path.display())]
    Poisoned { path: PathBuf },
}

/// A value of type `T` in one file, which every write replaces as a whole.
///
/// The file is one line of text, then JSON, so that a person can read it:
///
/// ```text
/// cohort-durable 1 version=1 crc32=64a7736d len=14\n
/// {"fence":"7"}\n
/// ```
///
/// The version is that of `T`. The checksum covers it and everything after the first line, and the
/// length the latter. Only the owner may read the file:
/// records hold the environment of services and the addresses of mirrors, which may include
/// secrets. Writes go through [`cohort_base::durable`]; a failed one poisons the record.
#[derive(Debug)]
pub struct DurableFile<T> {
    path: PathBuf,
    version: u32,
    poisoned: bool,
    value: PhantomData<fn(T) -> T>,
}

impl<T: Serialize + DeserializeOwned> DurableFile<T> {
    /// Opens the record at `path` and reads it; `None` if there is none yet. `version` is that of
    /// `T`: raise it with every change. The directory must exist, and this process must be the
    /// record's only writer.
    ///
    /// # Errors
    /// [`DurableFileError::Version`] if the file has a `T` of another version.
    /// [`DurableFileError::Damaged`] if the file does not have the form above or is not a `T`. The
    /// file is then renamed to `<name>.damaged-<n>`, and the next open finds no record.
    pub fn open(
        path: impl Into<PathBuf>,
        version: u32,
    ) -> Result<(Self, Option<T>), DurableFileError> {
        let path = path.into();
        let unreadable = |source| {
            DurableFileError::Read(FileError { doing: "read", path: path.clone(), source })
        };
        durable::sweep_for(&path).map_err(unreadable)?;
        let length = match fs::metadata(&path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok((Self::at(path, version), None));
            }
            Err(error) => return Err(unreadable(error)),
        };
        let parsed = if length > RECORD_BYTES_MAX {
            Err(format!("{length} bytes are too many").into())
        } else {
            parse(&fs::read(&path).map_err(unreadable)?, version)
        };
        match parsed {
            Ok(Parsed::Value(value)) => Ok((Self::at(path, version), Some(value))),
            Ok(Parsed::Version(found)) => {
                Err(DurableFileError::Version { path, found, supported: version })
            }
            Err(source) => {
                let moved_to = move_aside(&path).map_err(unreadable)?;
                Err(DurableFileError::Damaged { path, moved_to, source })
            }
        }
    }

    fn at(path: PathBuf, version: u32) -> Self {
        DurableFile { path, version, poisoned: false, value: PhantomData }
    }

    /// Replaces the record. It is durable when this returns.
    ///
    /// # Errors
    /// [`DurableFileError::Write`], and [`DurableFileError::Poisoned`] for every later call.
    pub fn save(&mut self, value: &T) -> Result<(), DurableFileError> {
        if self.poisoned {
            return Err(DurableFileError::Poisoned { path: self.path.clone() });
        }
        let written = encode(value, self.version)
            .and_then(|bytes| durable::write(&self.path, &bytes, durable::SECRET))
            .on_path("write", &self.path);
        self.poisoned = written.is_err();
        written.map_err(DurableFileError::Write)
    }

    /// Where the record is stored.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn encode<T: Serialize>(value: &T, version: u32) -> io::Result<Vec<u8>> {
    let mut body = serde_json::to_vec(value)?;
    body.push(b'\n');
    let mut bytes = first_line(version, &body).into_bytes();
    bytes.push(b'\n');
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

fn first_line(version: u32, body: &[u8]) -> String {
    let mut hash = crc32fast::Hasher::new();
    hash.update(format!("version={version}\n").as_bytes());
    hash.update(body);
    format!("{FORMAT} version={version} crc32={:08x} len={}", hash.finalize(), body.len())
}

/// The content of a whole file.
enum Parsed<T> {
    Value(T),
    /// Another version of `T`.
    Version(u32),
}

fn parse<T: DeserializeOwned>(bytes: &[u8], version: u32) -> Result<Parsed<T>, Cause> {
    let end = bytes.iter().position(|&byte| byte == b'\n').ok_or("no first line")?;
    let (line, body) = (std::str::from_utf8(&bytes[..end])?, &bytes[end + 1..]);
    let mut words = line.split(' ');
    let found = words.find_map(|word| word.strip_prefix("version=")).ok_or("no version")?;
    let found: u32 = found.parse()?;
    if line != first_line(found, body) {
        return Err("the first line does not match the content".into());
    }
    if found != version {
        return Ok(Parsed::Version(found));
    }
    Ok(Parsed::Value(serde_json::from_slice(body)?))
}

/// Renames a damaged file to `<name>.damaged-<n>`, using the first free `n`.
pub(crate) fn move_aside(path: &Path) -> io::Result<PathBuf> {
    for n in 1..u32::MAX {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".damaged-{n}"));
        let moved_to = PathBuf::from(name);
        if !moved_to.try_exists()? {
            durable::rename(path, &moved_to)?;
            return Ok(moved_to);
        }
    }
    Err(io::Error::other("no free name for a damaged file"))
}
