//! The hub's configuration: `hub.toml`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use cohort_wire::hub::{HUB_PORT, REPOSITORY_PORT};
use serde::{Deserialize, Serialize};

/// How many watches may wait at once: every member of several hundred groups with one, and room for
/// people. Beyond it 503: an agent that asks again in a second costs less than one that waits.
pub(crate) const WATCHES_MAX: usize = 1500;

const _: () = assert!(
    WATCHES_MAX < cohort_wire::limits::REQUESTS_MAX,
    "those who wait leave room for those who write"
);

/// The longest list of mirrors: clients try them in order.
const MIRRORS_MAX: usize = 32;
/// The most labels that make a group.
const GROUPING_MAX: usize = 4;

/// What a hub is told. Every folder has a default below `data_dir`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HubConfig {
    /// Where the registry, join tokens and defaults of the other folders are.
    pub data_dir: PathBuf,
    /// The API: mutual TLS.
    #[serde(default = "default_listen")]
    pub listen: SocketAddr,
    /// The repository, probes and metrics: plain HTTP; everything read here is signed.
    #[serde(default = "default_repository_listen")]
    pub repository_listen: SocketAddr,
    /// The repository; default `<data_dir>/repository`.
    #[serde(default)]
    pub repository_dir: Option<PathBuf>,
    /// A bucket that gets a copy of the repository, such as `s3://BUCKET/PREFIX`. With one, a
    /// publishing is acknowledged when the bucket has it.
    #[serde(default)]
    pub repository_bucket: Option<String>,
    /// The built-in authority; default `<data_dir>/authority`. Without one nobody can join here.
    #[serde(default)]
    pub authority_dir: Option<PathBuf>,
    /// The hub's own certificate and key; default `<data_dir>/identity`. Made when missing, if the
    /// authority is here.
    #[serde(default)]
    pub identity_dir: Option<PathBuf>,
    /// The key that renews the repository's timestamp; default `<data_dir>/keys/timestamp.pem`.
    #[serde(default)]
    pub timestamp_key: Option<PathBuf>,
    /// The repository's root that joining servers are to trust first; default
    /// `metadata/1.root.json` of the repository.
    #[serde(default)]
    pub trusted_root: Option<PathBuf>,
    /// The hub's name in its certificate, when it has to make one.
    #[serde(default = "default_name")]
    pub name: String,
    /// Where agents reach the hub, `host:port`; written into join tokens.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Base URLs of the repository's mirrors, in the order to try; told to joining servers.
    #[serde(default)]
    pub mirrors: Vec<String>,
    /// The labels whose values, joined by dots, name a server's group.
    #[serde(default = "default_grouping")]
    pub grouping: Vec<String>,
    /// How often it is checked whether the timestamp or the hub's certificate is to be renewed, in
    /// seconds.
    #[serde(default = "default_renew_interval_s")]
    pub renew_interval_s: u64,
    /// How long a join token is good when its maker does not say, in seconds.
    #[serde(default = "default_token_valid_s")]
    pub token_valid_s: u64,
    /// How many watches may wait at once; beyond it 503. No key of the file: the limit is for tests
    /// to lower.
    #[serde(skip, default = "default_watches_max")]
    pub watches_max: usize,
    /// A person says that no other hub of this fleet lives, so that this one, restored from a
    /// backup, may bootstrap groups again. For the command line; not to be left in the file.
    #[serde(default)]
    pub confirm_restored: bool,
}

fn any(port: u16) -> SocketAddr {
    SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), port)
}

fn default_listen() -> SocketAddr {
    any(HUB_PORT)
}

fn default_repository_listen() -> SocketAddr {
    any(REPOSITORY_PORT)
}

fn default_name() -> String {
    "hub".to_owned()
}

fn default_grouping() -> Vec<String> {
    vec!["platform".to_owned(), "zone".to_owned()]
}

fn default_renew_interval_s() -> u64 {
    3600
}

fn default_token_valid_s() -> u64 {
    24 * 3600
}

fn default_watches_max() -> usize {
    WATCHES_MAX
}

impl HubConfig {
    /// The defaults, for a hub in this folder.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        HubConfig {
            data_dir: data_dir.into(),
            listen: default_listen(),
            repository_listen: default_repository_listen(),
            repository_dir: None,
            repository_bucket: None,
            authority_dir: None,
            identity_dir: None,
            timestamp_key: None,
            trusted_root: None,
            name: default_name(),
            addresses: Vec::new(),
            mirrors: Vec::new(),
            grouping: default_grouping(),
            renew_interval_s: default_renew_interval_s(),
            token_valid_s: default_token_valid_s(),
            watches_max: default_watches_max(),
            confirm_restored: false,
        }
    }

    /// Where the repository is.
    #[must_use]
    pub fn repository_dir(&self) -> PathBuf {
        self.below(self.repository_dir.as_ref(), "repository")
    }

    /// Where the authority is.
    #[must_use]
    pub fn authority_dir(&self) -> PathBuf {
        self.below(self.authority_dir.as_ref(), "authority")
    }

    /// Where the hub's certificate is.
    #[must_use]
    pub fn identity_dir(&self) -> PathBuf {
        self.below(self.identity_dir.as_ref(), "identity")
    }

    /// Where the timestamp's key is.
    #[must_use]
    pub fn timestamp_key(&self) -> PathBuf {
        self.below(self.timestamp_key.as_ref(), "keys/timestamp.pem")
    }

    /// The registry's file.
    #[must_use]
    pub fn registry_file(&self) -> PathBuf {
        self.data_dir.join("registry.redb")
    }

    /// The folder of join tokens.
    #[must_use]
    pub fn tokens_dir(&self) -> PathBuf {
        self.data_dir.join("tokens")
    }

    /// The first root that joining servers trust.
    #[must_use]
    pub fn trusted_root(&self) -> PathBuf {
        match &self.trusted_root {
            Some(path) => path.clone(),
            None => self.repository_dir().join("metadata/1.root.json"),
        }
    }

    /// What no single value can say.
    ///
    /// # Errors
    /// The first rule that is broken, in words that name the key.
    pub fn validate(&self) -> Result<(), String> {
        if self.grouping.is_empty() || self.grouping.len() > GROUPING_MAX {
            return Err(format!("grouping names 1 to {GROUPING_MAX} labels"));
        }
        if self.mirrors.len() > MIRRORS_MAX {
            return Err(format!("mirrors names {MIRRORS_MAX} at the most"));
        }
        if self.renew_interval_s == 0 || self.token_valid_s == 0 {
            return Err("renew_interval_s and token_valid_s are at least 1".to_owned());
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
            return Err("repository_dir is served to everyone: no key may lie below it".to_owned());
        }
        Ok(())
    }

    fn below(&self, given: Option<&PathBuf>, default: &str) -> PathBuf {
        given.cloned().unwrap_or_else(|| self.data_dir.join(default))
    }
}
