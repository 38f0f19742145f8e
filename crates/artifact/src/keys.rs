//! Signing keys: one or more per TUF role, in files that only the owner can read.
//!
//! A file is an Ed25519 key in PKCS#8 PEM, with or without a passphrase, or names a program that
//! signs ([`program`]).

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use cohort_base::durable::{self, SECRET};
use cohort_base::{Cause, FileError, OnPath as _};
use serde::Serialize;
use tough::schema::RoleType;
use tough::schema::key::Key;

use program::{Program, ProgramError};

mod folder;
mod program;
mod sealed;

pub use folder::Keys;

/// Longest key file, in bytes; an Ed25519 key in PEM has 120 to 400.
const KEY_FILE_BYTES_MAX: u64 = 16 << 10;

const PEM_TAG: &str = "PRIVATE KEY";
const SEALED_PEM_TAG: &str = "ENCRYPTED PRIVATE KEY";

/// Who signs what in a repository.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyRole {
    /// Signs the keys of all roles, its own included.
    Root,
    /// Signs the list of manifests and channels.
    Targets,
    /// Signs which list is current.
    Snapshot,
    /// Signs, every day, that the snapshot is still current.
    Timestamp,
}

impl KeyRole {
    pub const ALL: [KeyRole; 4] =
        [KeyRole::Root, KeyRole::Targets, KeyRole::Snapshot, KeyRole::Timestamp];

    /// The roles whose keys sign every release.
    pub const PUBLISHING: [KeyRole; 3] = [KeyRole::Targets, KeyRole::Snapshot, KeyRole::Timestamp];

    pub(crate) fn of_tuf(self) -> RoleType {
        match self {
            KeyRole::Root => RoleType::Root,
            KeyRole::Targets => RoleType::Targets,
            KeyRole::Snapshot => RoleType::Snapshot,
            KeyRole::Timestamp => RoleType::Timestamp,
        }
    }
}

impl fmt::Display for KeyRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            KeyRole::Root => "root",
            KeyRole::Targets => "targets",
            KeyRole::Snapshot => "snapshot",
            KeyRole::Timestamp => "timestamp",
        })
    }
}

/// A text that names no role.
#[derive(Debug, thiserror::Error)]
#[error("expected root, targets, snapshot or timestamp")]
pub struct NoSuchRole;

impl FromStr for KeyRole {
    type Err = NoSuchRole;

    fn from_str(text: &str) -> Result<Self, NoSuchRole> {
        KeyRole::ALL.into_iter().find(|role| role.to_string() == text).ok_or(NoSuchRole)
    }
}

/// Asks for the passphrase of a key file; `None` if there is nobody to ask.
pub type AskPassphrase<'a> = &'a (dyn Fn(&Path) -> io::Result<Option<String>> + Sync);

/// For a process that nobody answers, such as the hub.
///
/// # Errors
/// Never.
pub fn no_passphrase(_: &Path) -> io::Result<Option<String>> {
    Ok(None)
}

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("key file {} exists already: keys are never overwritten", path.display())]
    Exists { path: PathBuf },
    #[error("key file {} is readable by others (mode {mode:o}); run: chmod 600", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error(
        "key file {} is neither an Ed25519 key in PKCS#8 PEM nor names a program", path.display()
    )]
    Malformed {
        path: PathBuf,
        #[source]
        source: Cause,
    },
    #[error(
        "key file {} has a passphrase, and there is no terminal to ask for it; \
         set COHORT_KEY_PASSPHRASE_FILE, or for the hub: \
         cohort repository passphrase FILE --remove",
        path.display()
    )]
    Locked { path: PathBuf },
    #[error("wrong passphrase for key file {}", path.display())]
    WrongPassphrase { path: PathBuf },
    #[error("cannot read the passphrase of key file {}", path.display())]
    Passphrase {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("key file {} names a program, which has no passphrase here", path.display())]
    NotHere { path: PathBuf },
    #[error("cannot generate a key: the system has no randomness")]
    Generate,
    #[error("cannot sign with {}", path.display())]
    Program {
        path: PathBuf,
        #[source]
        source: ProgramError,
    },
}

/// The private key of one role, or the program that has it.
#[derive(Clone)]
pub struct SigningKey {
    public: Key,
    secret: Secret,
    /// Where it was read from.
    path: Option<PathBuf>,
}

#[derive(Clone)]
enum Secret {
    Pkcs8(Vec<u8>),
    Program(Program),
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SigningKey(private)")
    }
}

impl SigningKey {
    /// Generates a key.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = Ed25519KeyPair::generate().map_err(|_| KeyError::Generate)?;
        let document = pair.to_pkcs8v1().map_err(|_| KeyError::Generate)?;
        Ok(Self::of_pair(&pair, document.as_ref().to_vec()))
    }

    fn of_pair(pair: &Ed25519KeyPair, pkcs8: Vec<u8>) -> Self {
        let public = hex::encode(pair.public_key().as_ref());
        let public = public.parse().expect("the text of an Ed25519 key");
        Self { public, secret: Secret::Pkcs8(pkcs8), path: None }
    }

    /// Reads a key file; refuses one that others may read. `ask` is called only if the file has a
    /// passphrase. Blocking: deriving a key from a passphrase takes a tenth of a second.
    ///
    /// # Errors
    /// If it is missing, exposed, neither a key nor names a program, or its passphrase is unknown.
    pub fn load(path: &Path, ask: AskPassphrase<'_>) -> Result<Self, KeyError> {
        let about = fs::metadata(path).on_path("read key file", path)?;
        let mode = about.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.to_owned(), mode });
        }
        let malformed = |source: Cause| KeyError::Malformed { path: path.to_owned(), source };
        if about.len() > KEY_FILE_BYTES_MAX {
            return Err(malformed(format!("longer than {KEY_FILE_BYTES_MAX} bytes").into()));
        }
        let bytes = fs::read(path).on_path("read key file", path)?;
        let is_pem = bytes.trim_ascii_start().starts_with(b"-----BEGIN");
        let block =
            if is_pem { Some(pem::parse(&bytes).map_err(|e| malformed(e.into()))?) } else { None };
        let key = match block {
            Some(block) if block.tag() == SEALED_PEM_TAG => {
                let passphrase = ask(path)
                    .map_err(|source| KeyError::Passphrase { path: path.to_owned(), source })?
                    .ok_or_else(|| KeyError::Locked { path: path.to_owned() })?;
                Self::of_pkcs8(sealed::open(block.contents(), &passphrase, path)?)
            }
            Some(block) if block.tag() == PEM_TAG => Self::of_pkcs8(block.into_contents()),
            Some(block) => Err(format!("it is a {}", block.tag()).into()),
            None => Program::parse(&bytes).map(|(public, program)| Self {
                public,
                secret: Secret::Program(program),
                path: None,
            }),
        };
        Ok(Self { path: Some(path.to_owned()), ..key.map_err(malformed)? })
    }

    fn of_pkcs8(pkcs8: Vec<u8>) -> Result<Self, Cause> {
        let pair = Ed25519KeyPair::from_pkcs8(&pkcs8).map_err(|_| "it is not an Ed25519 key")?;
        Ok(Self::of_pair(&pair, pkcs8))
    }

    /// Writes the key to a new file of mode 0600, under a passphrase if there is one.
    ///
    /// # Errors
    /// If the file exists or cannot be written, or a program has the key.
    pub fn save(&self, path: &Path, passphrase: Option<&str>) -> Result<(), KeyError> {
        let text = self.to_text(path, passphrase)?;
        match durable::create(path, text.as_bytes(), SECRET) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(KeyError::Exists { path: path.to_owned() })
            }
            written => Ok(written.on_path("write key file", path)?),
        }
    }

    /// Replaces the file that the key was read from by one with another passphrase, or none.
    ///
    /// # Errors
    /// If the file cannot be written, or a program has the key.
    pub fn set_passphrase(&self, path: &Path, passphrase: Option<&str>) -> Result<(), KeyError> {
        let text = self.to_text(path, passphrase)?;
        Ok(durable::write(path, text.as_bytes(), SECRET).on_path("write key file", path)?)
    }

    fn to_text(&self, path: &Path, passphrase: Option<&str>) -> Result<String, KeyError> {
        let Secret::Pkcs8(pkcs8) = &self.secret else {
            return Err(KeyError::NotHere { path: path.to_owned() });
        };
        Ok(pem::encode(&match passphrase {
            None => pem::Pem::new(PEM_TAG, pkcs8.clone()),
            Some(passphrase) => pem::Pem::new(SEALED_PEM_TAG, sealed::seal(pkcs8, passphrase)?),
        }))
    }

    /// The file that it was read from.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// Names its public half: 64 hexadecimal digits, as in TUF metadata.
    #[must_use]
    pub fn id(&self) -> String {
        self.public.key_id().map(hex::encode).unwrap_or_default()
    }

    /// The public half, as used in TUF metadata.
    pub(crate) fn public(&self) -> &Key {
        &self.public
    }

    /// Signs; what a program signed is verified.
    ///
    /// # Errors
    /// If the program fails, or its signature is wrong.
    pub async fn sign(&self, bytes: &[u8]) -> Result<Vec<u8>, KeyError> {
        match &self.secret {
            Secret::Pkcs8(pkcs8) => {
                let pair = Ed25519KeyPair::from_pkcs8(pkcs8);
                let pair = pair.expect("the key was parsed when it was loaded");
                Ok(pair.sign(bytes).as_ref().to_vec())
            }
            Secret::Program(program) => {
                let path = self.path.clone().unwrap_or_default();
                let signed = program.sign(&self.public, bytes).await;
                signed.map_err(|source| KeyError::Program { path, source })
            }
        }
    }
}

#[cfg(test)]
#[path = "keys_test.rs"]
mod keys_test;
