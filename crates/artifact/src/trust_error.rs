//! Why something is not trusted, so that an operator can act on it.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use cohort_base::chain::causes;
use jiff::Timestamp;
use serde::Serialize;
use tough::schema::RoleType;
use tough::{TransportError, error::Error as Tough};

use crate::client::{FetchError, Mirror};

/// An error of any type, shared so that a refusal can be kept and handed out.
pub type SharedCause = Arc<dyn Error + Send + Sync>;

pub(crate) fn cause(error: impl Into<Box<dyn Error + Send + Sync>>) -> SharedCause {
    Arc::from(error.into())
}

/// A role of the repository's metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Names the keys of all roles.
    Root,
    /// Says which snapshot is the current one; short-lived.
    Timestamp,
    /// Says which targets metadata is the current one.
    Snapshot,
    /// Says which manifests and channels there are.
    Targets,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Timestamp => "timestamp",
            Self::Snapshot => "snapshot",
            Self::Targets => "targets",
        })
    }
}

impl From<RoleType> for Role {
    fn from(role: RoleType) -> Self {
        match role {
            RoleType::Root => Self::Root,
            RoleType::Timestamp => Self::Timestamp,
            RoleType::Snapshot => Self::Snapshot,
            RoleType::Targets | RoleType::DelegatedTargets => Self::Targets,
        }
    }
}

/// A refusal: what is wrong, and which mirror offered it.
#[derive(Debug, Clone)]
pub struct TrustError {
    pub kind: TrustErrorKind,
    /// The mirror that offered it; nothing for a peer or this server's disk.
    pub mirror: Option<String>,
}

impl fmt::Display for TrustError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.kind.fmt(f)?;
        self.mirror.as_ref().map_or(Ok(()), |mirror| write!(f, " (from {mirror})"))
    }
}

impl Error for TrustError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.kind.source()
    }
}

/// What is wrong with metadata or a file.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TrustErrorKind {
    /// Not signed by the keys that this server trusts.
    #[error("{role} metadata is not signed by a trusted key")]
    WrongSignature { role: Role },
    /// Signed correctly, but too long ago: somebody may be hiding newer metadata.
    #[error(
        "{role} metadata expired at {expired_at}; this server's clock says {now}: \
         the hub renews it daily, so the hub is down, the mirror is stale, or the clock is wrong"
    )]
    Expired {
        role: Role,
        /// When the signature expired.
        expired_at: Timestamp,
        /// The clock of this server.
        now: Timestamp,
    },
    /// Older than what this server has seen: a replay.
    #[error("{role} metadata has version {offered}, but version {trusted} was seen before")]
    Older {
        role: Role,
        /// The version seen before.
        trusted: u64,
        offered: u64,
    },
    /// Files that do not belong together.
    #[error("metadata does not fit together: {what}")]
    Mixed {
        /// Which file, and how.
        what: String,
    },
    /// More bytes than allowed.
    #[error("{what} is longer than the {limit_bytes} bytes allowed")]
    TooLarge {
        what: String,
        /// The limit in bytes.
        limit_bytes: u64,
    },
    /// This server's clock went back.
    #[error("this server's clock went back from {seen} to {now}: set its clock")]
    ClockWentBack {
        /// The clock of this server.
        now: Timestamp,
        /// The latest time at which something was verified.
        seen: Timestamp,
    },
    /// The repository does not have it.
    #[error("{what}")]
    NotFound {
        /// What is missing.
        what: String,
    },
    /// A mirror cannot be reached, or fails to answer.
    #[error("cannot fetch {what}")]
    Unreachable {
        what: String,
        /// What went wrong on the way.
        #[source]
        source: FetchError,
    },
    /// No mirror to ask.
    #[error("no mirror of the repository is configured")]
    NoMirror,
    /// No client to ask mirrors with.
    #[error("no client for mirrors")]
    Client(#[source] FetchError),
    /// Not of the expected form.
    #[error("cannot parse {what}")]
    Malformed {
        what: String,
        /// What its parser says.
        #[source]
        source: SharedCause,
    },
    /// The bytes of a signed file are not the signed ones.
    #[error("{what} does not have the signed bytes")]
    WrongBytes { what: String },
    /// A file that was signed as something else.
    #[error("a manifest or channel is for another {field}: wanted {wanted}, found {found}")]
    WrongContent {
        /// The field that differs.
        field: &'static str,
        /// What was asked for.
        wanted: String,
        /// What the file says.
        found: String,
    },
    /// The root from the operator is invalid.
    #[error("invalid trusted root")]
    BadRoot(#[source] SharedCause),
    /// What this server keeps on disk cannot be read or written.
    #[error("cannot use trust store {}", path.display())]
    Store {
        /// The file or folder.
        path: PathBuf,
        /// The error of the disk.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// What this server keeps on disk is not what it wrote.
    #[error(
        "trust store {} is corrupt; removing it makes this server forget which metadata it saw",
        path.display()
    )]
    StoreDamaged {
        path: PathBuf,
        /// What its parser says.
        #[source]
        source: SharedCause,
    },
}

impl TrustErrorKind {
    /// Whether no mirror could be reached, so that trying again may help.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::NoMirror)
    }

    /// A refusal without a mirror.
    pub(crate) fn here(self) -> TrustError {
        TrustError { kind: self, mirror: None }
    }

    pub(crate) fn at(self, mirror: &Mirror) -> TrustError {
        TrustError { kind: self, mirror: Some(mirror.to_string()) }
    }

    /// From a failed fetch of `what`.
    pub(crate) fn of_fetch(what: &str, error: FetchError) -> Self {
        let what = what.to_owned();
        match error {
            FetchError::TooLarge { limit_bytes } => Self::TooLarge { what, limit_bytes },
            source => Self::Unreachable { what, source },
        }
    }

    /// From the TUF library. `expires` looks up when the offered file of a role ended.
    pub(crate) fn of_tough(
        error: Tough,
        now: Timestamp,
        expires: impl Fn(Role) -> Option<Timestamp>,
    ) -> Self {
        match &error {
            Tough::VerifyMetadata { role, .. } => Self::WrongSignature { role: (*role).into() },
            Tough::ExpiredMetadata { role, .. } => {
                let role = (*role).into();
                Self::Expired { role, expired_at: expires(role).unwrap_or(now), now }
            }
            Tough::OlderMetadata { role, current_version, new_version, .. } => Self::Older {
                role: (*role).into(),
                trusted: *current_version,
                offered: *new_version,
            },
            Tough::OlderSnapshotInTimestamp { snapshot_new, snapshot_old, .. } => {
                Self::Older { role: Role::Snapshot, trusted: *snapshot_old, offered: *snapshot_new }
            }
            Tough::SnapshotRoleRollback { old_role_version, new_role_version, .. } => Self::Older {
                role: Role::Targets,
                trusted: *old_role_version,
                offered: *new_role_version,
            },
            Tough::VersionMismatch { role, fetched, expected, .. } => Self::Mixed {
                what: format!("{role} has version {fetched}, announced was {expected}"),
            },
            Tough::SnapshotRoleMissing { .. }
            | Tough::SnapshotTargetsMetaMissing { .. }
            | Tough::MissingSnapshotMeta { .. }
            | Tough::TimestampMetaLength { .. }
            | Tough::MetaMissing { .. } => Self::Mixed { what: error.to_string() },
            Tough::ParseMetadata { role, .. } => {
                Self::Malformed { what: format!("{role} metadata"), source: cause(error) }
            }
            Tough::ParseTrustedMetadata { .. } | Tough::VerifyTrustedMetadata { .. } => {
                Self::BadRoot(cause(error))
            }
            Tough::SystemTimeSteppedBackward { sys_time, latest_known_time } => {
                Self::ClockWentBack { now: *sys_time, seen: *latest_known_time }
            }
            Tough::Transport { url, source, .. } => {
                let name = url.path_segments().and_then(Iterator::last).unwrap_or("a file");
                let (what, known) = (name.to_owned(), Self::of_transport(name, source));
                known.unwrap_or_else(|| Self::Malformed { what, source: cause(error) })
            }
            _ => Self::Malformed { what: "metadata".to_owned(), source: cause(error) },
        }
    }

    fn of_transport(name: &str, error: &TransportError) -> Option<Self> {
        if let Some(fetch) = causes(error).find_map(|cause| cause.downcast_ref::<FetchError>()) {
            return Some(Self::of_fetch(name, fetch.clone()));
        }
        match causes(error).find_map(|cause| cause.downcast_ref::<Tough>())? {
            Tough::HashMismatch { .. } => {
                Some(Self::Mixed { what: format!("{name} is not the announced file") })
            }
            // The fetch stayed within the limit for its kind of file, so the file is complete and
            // longer than the signed length: another one of the same name.
            Tough::MaxSizeExceeded { .. } => {
                Some(Self::Mixed { what: format!("{name} is longer than the announced file") })
            }
            _ => None,
        }
    }
}
