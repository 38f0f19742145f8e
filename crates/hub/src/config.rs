//! The hub's configuration: `hub.toml`.

use std::fs::File;
use std::io::{self, Read as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cohort_artifact::Repository;
use cohort_base::{FileError, OnPath as _};
use cohort_identity::sha256_hex;
use cohort_wire::hub::{HUB_PORT, REPOSITORY_PORT};
use serde::{Deserialize, Serialize};

/// Most concurrent watches: one for every member of several hundred groups, and some for people.
/// More get a 503: an agent that asks again in a second costs less than one that waits.
pub(crate) const WATCHES_MAX: usize = 1500;

/// Largest root, in bytes; ours are a few kilobytes.
const ROOT_BYTES_MAX: u64 = 1024 * 1024;

const _: () =
    assert!(WATCHES_MAX < cohort_wire::limits::REQUESTS_MAX, "watches leave room for writes");

/// See [`HubConfig::unpublished_bytes_max`]. 64 GiB: four artifacts of the largest size; without a
/// signing key, a publisher can waste no more of the disk.
const UNPUBLISHED_BYTES_MAX: u64 = 64 << 30;
/// See [`HubConfig::group_silent`]. A living member asks the hub at least once a minute.
const GROUP_SILENT: Duration = Duration::from_secs(120);
/// Longest list of mirrors: clients try them in order.
const MIRRORS_MAX: usize = 32;
/// Most labels that make up a group's name.
const GROUPING_MAX: usize = 4;

/// Who may read the repository from the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RepositoryAccess {
    /// Whoever reaches the plain port.
    #[default]
    Anyone,
    /// Whoever has a certificate, at the API's port.
    Fleet,
}

/// The content of `hub.toml`. Every directory has a default below `data_dir`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HubConfig {
    /// For the registry and join tokens, and the default parent of the other directories.
    pub data_dir: PathBuf,
    /// Address of the API: mutual TLS.
    pub listen: SocketAddr,
    /// Address of repository, probes and metrics: plain HTTP; everything read here is signed.
    pub repository_listen: SocketAddr,
    /// The repository; default `<data_dir>/repository`.
    pub repository_dir: Option<PathBuf>,
    /// Who may read the repository here.
    pub repository_access: RepositoryAccess,
    /// A bucket for a copy of the repository, such as `s3://BUCKET/PREFIX`. If set, an upload is
    /// acknowledged only once the bucket has it.
    pub repository_bucket: Option<String>,
    /// The built-in authority; default `<data_dir>/authority`. Without one, servers cannot join
    /// here.
    pub authority_dir: Option<PathBuf>,
    /// The hub's own certificate and key; default `<data_dir>/identity`. Created if missing,
    /// provided the authority is here.
    pub identity_dir: Option<PathBuf>,
    /// The key that renews the repository's timestamp; default `<data_dir>/keys/timestamp.pem`.
    pub timestamp_key: Option<PathBuf>,
    /// The repository's root that joining servers trust first; default: the repository's
    /// newest.
    pub trusted_root: Option<PathBuf>,
    /// The hub's name in the certificate that it creates.
    pub name: String,
    /// Addresses of the hub for agents, `host:port`; included in join tokens.
    pub addresses: Vec<String>,
    /// Base URLs of the repository's mirrors, in the order to try; sent to joining servers.
    pub mirrors: Vec<String>,
    /// Labels whose values, joined by dots, form the name of a server's group.
    pub grouping: Vec<String>,
    /// How often the hub checks whether its certificate and the repository's timestamp are due for
    /// renewal, in seconds.
    pub renew_interval_s: u64,
    /// Default validity of a join token, in seconds.
    pub token_valid_s: u64,
    /// Bytes that a publisher may upload before it ends the publish with a signed timestamp.
    pub unpublished_bytes_max: u64,
    /// Most concurrent watches; more get a 503. Not a key of the file: tests lower it.
    #[serde(skip)]
    pub watches_max: usize,
    /// How long a group must not have been heard from before `group remove` believes that its
    /// servers are lost. Not a key of the file: tests lower it.
    #[serde(skip)]
    pub group_silent: Duration,
    /// An operator confirms that no other hub of this fleet is alive, so that this one, restored
    /// from a backup, may bootstrap groups again. For the command line; do not leave it in the
    /// file.
    pub confirm_restored: bool,
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
}

impl Default for HubConfig {
    fn default() -> Self {
        HubConfig {
            data_dir: PathBuf::new(),
            listen: any(HUB_PORT),
            repository_listen: any(REPOSITORY_PORT),
            repository_dir: None,
            repository_access: RepositoryAccess::Anyone,
            repository_bucket: None,
            authority_dir: None,
            identity_dir: None,
            timestamp_key: None,
            trusted_root: None,
            name: "hub".to_owned(),
            addresses: Vec::new(),
            mirrors: Vec::new(),
            grouping: vec!["platform".to_owned(), "zone".to_owned()],
            renew_interval_s: 3600,
            token_valid_s: 24 * 3600,
            unpublished_bytes_max: UNPUBLISHED_BYTES_MAX,
            watches_max: WATCHES_MAX,
            group_silent: GROUP_SILENT,
            confirm_restored: false,
        }
    }
}

impl HubConfig {
    /// The defaults for a hub in this directory.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        HubConfig { data_dir: data_dir.into(), ..HubConfig::default() }
    }

    /// The repository's directory, configured or by default.
    #[must_use]
    pub fn repository_dir(&self) -> PathBuf {
        self.below(self.repository_dir.as_ref(), "repository")
    }

    /// The authority's directory, configured or by default.
    #[must_use]
    pub fn authority_dir(&self) -> PathBuf {
        self.below(self.authority_dir.as_ref(), "authority")
    }

    /// The directory of the hub's certificate.
    #[must_use]
    pub fn identity_dir(&self) -> PathBuf {
        self.below(self.identity_dir.as_ref(), "identity")
    }

    /// The key that renews the timestamp.
    #[must_use]
    pub fn timestamp_key(&self) -> PathBuf {
        self.below(self.timestamp_key.as_ref(), "keys/timestamp.pem")
    }

    /// The directory of join tokens.
    #[must_use]
    pub fn tokens_dir(&self) -> PathBuf {
        self.data_dir.join("tokens")
    }

    /// The directory of removals.
    #[must_use]
    pub fn removed_dir(&self) -> PathBuf {
        self.data_dir.join("removed")
    }

    /// Reads the first root that joining servers trust: `trusted_root`, else the repository's
    /// newest, or the one with this SHA-256, which a token may name that is older than a change of
    /// keys. `None` without a repository. Blocking.
    ///
    /// # Errors
    /// If a file cannot be read, or is longer than 1 MiB.
    pub fn read_trusted_root(&self, sha256: Option<&str>) -> Result<Option<String>, FileError> {
        if let Some(path) = &self.trusted_root {
            return read_root(path);
        }
        let mut newest = None;
        for path in Repository::roots(&self.repository_dir())? {
            let root = read_root(&path)?;
            let fits =
                |root: &String| sha256.is_none_or(|hash| sha256_hex(root.as_bytes()) == hash);
            if root.as_ref().is_some_and(fits) {
                return Ok(root);
            }
            newest = newest.or(root);
        }
        Ok(newest)
    }

    /// Checks the values against one another.
    ///
    /// # Errors
    /// The first broken rule, with its key, for people.
    pub fn validate(&self) -> Result<(), String> {
        if self.data_dir.as_os_str().is_empty() {
            return Err("data_dir is missing".to_owned());
        }
        if self.grouping.is_empty() || self.grouping.len() > GROUPING_MAX {
            return Err(format!("grouping names 1 to {GROUPING_MAX} labels"));
        }
        if self.mirrors.len() > MIRRORS_MAX {
            return Err(format!("mirrors names at most {MIRRORS_MAX}"));
        }
        if self.renew_interval_s == 0 || self.token_valid_s == 0 {
            return Err("renew_interval_s and token_valid_s must be at least 1".to_owned());
        }
        if self.watches_max == 0 || self.watches_max > WATCHES_MAX {
            return Err(format!("watches_max is 1 to {WATCHES_MAX}"));
        }
        let repository = self.repository_dir();
        let private = [self.authority_dir(), self.identity_dir(), self.tokens_dir()];
        if private.iter().any(|dir| dir.starts_with(&repository))
            || self.timestamp_key().starts_with(&repository)
            || self.data_dir.starts_with(&repository)
        {
            return Err("repository_dir is public: no key may be below it".to_owned());
        }
        Ok(())
    }

    fn below(&self, given: Option<&PathBuf>, default: &str) -> PathBuf {
        given.cloned().unwrap_or_else(|| self.data_dir.join(default))
    }
}

#[cfg(test)]
#[path = "config_test.rs"]
mod config_test;

fn read_root(path: &Path) -> Result<Option<String>, FileError> {
    let read = || {
        let mut text = String::new();
        File::open(path)?.take(ROOT_BYTES_MAX + 1).read_to_string(&mut text)?;
        if text.len() as u64 > ROOT_BYTES_MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "longer than 1 MiB"));
        }
        Ok(text)
    };
    match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        read => read.map(Some).on_path("read", path),
    }
}
