//! The keys of a repository in a directory: `ROLE.pem`, and for more of them `ROLE-NAME.pem`; a
//! file that names a program ends in `.toml`.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cohort_base::OnPath as _;
use cohort_base::durable;

use super::{AskPassphrase, KeyError, KeyRole, SigningKey};

/// The keys of a repository that are at hand.
#[derive(Debug, Clone, Default)]
pub struct Keys {
    /// Sign the other keys. Absent from most machines.
    pub root: Vec<SigningKey>,
    pub targets: Vec<SigningKey>,
    pub snapshot: Vec<SigningKey>,
    /// All that the hub needs.
    pub timestamp: Vec<SigningKey>,
}

impl Keys {
    /// Generates a key for every role.
    ///
    /// # Errors
    /// If the system has no randomness.
    pub fn generate() -> Result<Self, KeyError> {
        let mut keys = Self::default();
        for role in KeyRole::ALL {
            keys.of_mut(role).push(SigningKey::generate()?);
        }
        Ok(keys)
    }

    /// Generates a key for every role and writes them to `folder` (created with mode 0700) as
    /// `targets.pem`, `snapshot.pem` and `timestamp.pem`, each with mode 0600, and `root.pem` to
    /// `root_folder`. All but the timestamp's, which the hub uses unattended, get the passphrase.
    ///
    /// # Errors
    /// If one of them exists already, or cannot be written.
    pub fn create(
        folder: &Path,
        root_folder: &Path,
        passphrase: Option<&str>,
    ) -> Result<Self, KeyError> {
        for folder in [folder, root_folder] {
            if !folder.exists() {
                durable::private_folder(folder).on_path("create directory", folder)?;
            }
        }
        let keys = Self::generate()?;
        let path =
            |role| Self::path(if role == KeyRole::Root { root_folder } else { folder }, role);
        // All or nothing: a second `init` must not mix two sets.
        if let Some(path) = KeyRole::ALL.map(path).into_iter().find(|path| path.exists()) {
            return Err(KeyError::Exists { path });
        }
        for role in KeyRole::ALL {
            let passphrase = passphrase.filter(|_| role != KeyRole::Timestamp);
            keys.of(role).iter().try_for_each(|key| key.save(&path(role), passphrase))?;
        }
        Ok(keys)
    }

    /// Reads the keys of `roles` in a directory. There may be none.
    ///
    /// # Errors
    /// If the directory or a key file cannot be read.
    pub fn load(
        folder: &Path,
        roles: &[KeyRole],
        ask: AskPassphrase<'_>,
    ) -> Result<Self, KeyError> {
        let mut keys = Self::default();
        for role in roles {
            for path in Self::paths(folder, *role)? {
                keys.of_mut(*role).push(SigningKey::load(&path, ask)?);
            }
        }
        Ok(keys)
    }

    /// Reads the keys that sign releases.
    ///
    /// # Errors
    /// As [`Keys::load`]; if a role has none.
    pub fn load_to_publish(folder: &Path, ask: AskPassphrase<'_>) -> Result<Self, KeyError> {
        for role in KeyRole::PUBLISHING {
            if Self::paths(folder, role)?.is_empty() {
                let path = Self::path(folder, role);
                fs::metadata(&path).on_path("read key file", &path)?;
            }
        }
        Self::load(folder, &KeyRole::PUBLISHING, ask)
    }

    /// The keys of a role.
    #[must_use]
    pub fn of(&self, role: KeyRole) -> &[SigningKey] {
        match role {
            KeyRole::Root => &self.root,
            KeyRole::Targets => &self.targets,
            KeyRole::Snapshot => &self.snapshot,
            KeyRole::Timestamp => &self.timestamp,
        }
    }

    /// The keys of a role, to add some.
    pub fn of_mut(&mut self, role: KeyRole) -> &mut Vec<SigningKey> {
        match role {
            KeyRole::Root => &mut self.root,
            KeyRole::Targets => &mut self.targets,
            KeyRole::Snapshot => &mut self.snapshot,
            KeyRole::Timestamp => &mut self.timestamp,
        }
    }

    /// Where a role's first key is.
    #[must_use]
    pub fn path(folder: &Path, role: KeyRole) -> PathBuf {
        folder.join(format!("{role}.pem"))
    }

    /// The key files of a role in a directory, sorted.
    fn paths(folder: &Path, role: KeyRole) -> Result<Vec<PathBuf>, KeyError> {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.on_path("read directory", folder)?,
        };
        let role = role.to_string();
        let mut paths = Vec::new();
        for entry in entries {
            let name = entry.on_path("read directory", folder)?.file_name();
            let stem = name
                .to_str()
                .and_then(|name| name.strip_suffix(".pem").or_else(|| name.strip_suffix(".toml")));
            let rest = stem.and_then(|stem| stem.strip_prefix(&role));
            if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-')) {
                paths.push(folder.join(name));
            }
        }
        paths.sort();
        Ok(paths)
    }
}
