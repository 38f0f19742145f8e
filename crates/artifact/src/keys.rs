//! Signing keys: one Ed25519 key per TUF role, in PKCS#8 PEM files that only the owner can read.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use aws_lc_rs::signature::Ed25519KeyPair;
use cohort_base::durable::{self, SECRET};
use cohort_base::{FileError, OnPath as _};
use tough::key_source::KeySource;
use tough::schema::RoleType;
use tough::schema::key::Key;
use tough::sign::Sign;

/// Longest key file, in bytes; an Ed25519 key in PEM has 120 to 180.
const KEY_FILE_BYTES_MAX: u64 = 16 << 10;

const PEM_TAG: &str = "PRIVATE KEY";

/// Why a key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("key file {} exists already: keys are never overwritten", path.display())]
    Exists { path: PathBuf },
    #[error("key file {} is readable by others (mode {mode:o}); run: chmod 600", path.display())]
    Exposed { path: PathBuf, mode: u32 },
    #[error("key file {} is not an Ed25519 key in PKCS#8 PEM", path.display())]
    Malformed { path: PathBuf },
    #[error("cannot generate a key: the system has no randomness")]
    Generate,
}

/// The private key of one role.
#[derive(Clone)]
pub struct SigningKey {
    pkcs8: Vec<u8>,
}

impl std::fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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
        Ok(Self { pkcs8: document.as_ref().to_vec() })
    }

    /// Reads a key file; refuses one that others may read.
    ///
    /// # Errors
    /// If it is missing, exposed, or not an Ed25519 key.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let about = fs::metadata(path).on_path("read key file", path)?;
        let mode = about.permissions().mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.to_owned(), mode });
        }
        let malformed = || KeyError::Malformed { path: path.to_owned() };
        if about.len() > KEY_FILE_BYTES_MAX {
            return Err(malformed());
        }
        let pem =
            pem::parse(fs::read(path).on_path("read key file", path)?).map_err(|_| malformed())?;
        if pem.tag() != PEM_TAG || Ed25519KeyPair::from_pkcs8(pem.contents()).is_err() {
            return Err(malformed());
        }
        Ok(Self { pkcs8: pem.into_contents() })
    }

    /// Writes the key to a new file of mode 0600.
    ///
    /// # Errors
    /// If the file exists or cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        let text = pem::encode(&pem::Pem::new(PEM_TAG, self.pkcs8.clone()));
        match durable::create(path, text.as_bytes(), SECRET) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                Err(KeyError::Exists { path: path.to_owned() })
            }
            written => Ok(written.on_path("write key file", path)?),
        }
    }

    fn pair(&self) -> Ed25519KeyPair {
        Ed25519KeyPair::from_pkcs8(&self.pkcs8).expect("the key was parsed when it was loaded")
    }

    /// The public half, as used in TUF metadata.
    pub(crate) fn public(&self) -> Key {
        self.pair().tuf_key()
    }

    pub(crate) fn source(&self) -> Vec<Box<dyn KeySource>> {
        vec![Box::new(self.clone())]
    }
}

#[tough::async_trait]
impl KeySource for SigningKey {
    async fn as_sign(
        &self,
    ) -> Result<Box<dyn Sign>, Box<dyn std::error::Error + Send + Sync + 'static>> {
        Ok(Box::new(self.pair()))
    }

    async fn write(
        &self,
        _value: &str,
        _key_id_hex: &str,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync + 'static>> {
        Err("keys are written by SigningKey::save only".into())
    }
}

/// The keys of a repository.
///
/// Publishing needs the first three. The root key is needed only to change keys and should be kept
/// away from networked machines; the hub only needs the timestamp key.
#[derive(Debug, Clone)]
pub struct Keys {
    /// Signs the list of manifests and channels.
    pub targets: SigningKey,
    /// Signs which targets metadata is current.
    pub snapshot: SigningKey,
    /// Signs, every day, that the snapshot is still current.
    pub timestamp: SigningKey,
    /// Signs the other keys. Absent from most machines.
    pub root: Option<SigningKey>,
}

impl Keys {
    /// Generates a key for every role.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        Ok(Self {
            targets: SigningKey::generate()?,
            snapshot: SigningKey::generate()?,
            timestamp: SigningKey::generate()?,
            root: Some(SigningKey::generate()?),
        })
    }

    /// Generates a key for every role and writes them to `folder` (created with mode 0700) as
    /// `root.pem`, `targets.pem`, `snapshot.pem` and `timestamp.pem`, each with mode 0600.
    ///
    /// # Errors
    /// If one of them exists already, or cannot be written.
    pub fn create(folder: &Path) -> Result<Self, KeyError> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
        made.on_path("create folder", folder)?;
        let keys = Self::generate()?;
        let all = [
            (RoleType::Root, keys.root.as_ref()),
            (RoleType::Targets, Some(&keys.targets)),
            (RoleType::Snapshot, Some(&keys.snapshot)),
            (RoleType::Timestamp, Some(&keys.timestamp)),
        ];
        // All or nothing: a second `init` must not mix two sets.
        for (role, _) in &all {
            let path = Self::path(folder, *role);
            if path.exists() {
                return Err(KeyError::Exists { path });
            }
        }
        for (role, key) in all {
            if let Some(key) = key {
                key.save(&Self::path(folder, role))?;
            }
        }
        Ok(keys)
    }

    /// Reads the keys in a directory. The root key may be missing.
    ///
    /// # Errors
    /// If one of the others is missing, or any is exposed or malformed.
    pub fn load(folder: &Path) -> Result<Self, KeyError> {
        let load = |role| SigningKey::load(&Self::path(folder, role));
        let root = Self::path(folder, RoleType::Root);
        Ok(Self {
            targets: load(RoleType::Targets)?,
            snapshot: load(RoleType::Snapshot)?,
            timestamp: load(RoleType::Timestamp)?,
            root: if root.exists() { Some(SigningKey::load(&root)?) } else { None },
        })
    }

    fn path(folder: &Path, role: RoleType) -> PathBuf {
        folder.join(format!("{role}.pem"))
    }
}

#[cfg(test)]
#[path = "keys_test.rs"]
mod keys_test;
