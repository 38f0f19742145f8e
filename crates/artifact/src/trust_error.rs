//! Why something is not trusted, in words that an operator can act upon.

use jiff::Timestamp;
use serde::Serialize;
use tough::schema::RoleType;
use tough::{TransportError, error::Error as Tough};

use crate::fetch::FetchError;

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

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
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

/// A refusal: what was wrong, and who offered it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[error("{kind}{}", from_mirror(.mirror.as_deref()))]
pub struct TrustError {
    /// What was wrong.
    #[serde(flatten)]
    pub kind: TrustErrorKind,
    /// The mirror that offered it, when it was one.
    pub mirror: Option<String>,
}

fn from_mirror(mirror: Option<&str>) -> String {
    mirror.map(|mirror| format!(" (from {mirror})")).unwrap_or_default()
}

/// What was wrong with something that was offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TrustErrorKind {
    /// Not signed by the keys that this server trusts.
    #[error("{role} metadata is not signed by a trusted key")]
    WrongSignature {
        /// The role.
        role: Role,
    },
    /// Signed correctly, but too long ago: somebody may be hiding newer metadata.
    #[error(
        "{role} metadata expired at {expired_at}; this server's clock says {now}: \
         the hub renews it, so either the hub is away, or the mirror holds news back, \
         or the clock is wrong"
    )]
    Expired {
        /// The role.
        role: Role,
        /// When its signature ended.
        expired_at: Timestamp,
        /// The clock of this server.
        now: Timestamp,
    },
    /// Older than what this server has seen: a replay.
    #[error("{role} metadata is of version {offered}, but version {trusted} was seen before")]
    Older {
        /// The role.
        role: Role,
        /// The version seen before.
        trusted: u64,
        /// The version offered.
        offered: u64,
    },
    /// Files that were not signed to go together.
    #[error("metadata does not fit together: {what}")]
    Mixed {
        /// Which file, and how.
        what: String,
    },
    /// More bytes than allowed.
    #[error("{what} is longer than the {limit_bytes} bytes allowed")]
    TooLarge {
        /// The file.
        what: String,
        /// The limit in bytes.
        limit_bytes: u64,
    },
    /// This server's clock shows an earlier time than it did before.
    #[error(
        "this server's clock went back: it says {now}, but said {seen} before; \
         set the clock of this server"
    )]
    ClockWentBack {
        /// The clock of this server.
        now: Timestamp,
        /// The latest time it showed when something was verified.
        seen: Timestamp,
    },
    /// The repository does not have it.
    #[error("{what}")]
    NotFound {
        /// What is missing.
        what: String,
    },
    /// A mirror cannot be reached, or fails to answer.
    #[error("{what} cannot be fetched: {reason}")]
    Unreachable {
        /// The file.
        what: String,
        /// Why.
        reason: String,
    },
    /// Not of the expected form.
    #[error("{what} cannot be read: {reason}")]
    Malformed {
        /// The file.
        what: String,
        /// Why.
        reason: String,
    },
    /// The bytes of a signed file are not the signed ones.
    #[error("{what} does not have the signed bytes")]
    WrongBytes {
        /// The file.
        what: String,
    },
    /// A file that was signed as something else.
    #[error("a manifest or channel is for another {field}: asked for {wanted}, it says {found}")]
    WrongContent {
        /// The field that differs.
        field: &'static str,
        /// What was asked for.
        wanted: String,
        /// What the file says.
        found: String,
    },
    /// The root that this server was given to begin with is no good.
    #[error("the trusted root cannot be used: {reason}")]
    BadRoot {
        /// Why.
        reason: String,
    },
    /// What this server keeps on disk cannot be read or written.
    #[error("trust kept in {path} cannot be used: {reason}")]
    Store {
        /// The file or folder.
        path: String,
        /// Why.
        reason: String,
    },
}

impl TrustErrorKind {
    /// Whether the cause is only that nobody could be reached, so that trying again may help.
    #[must_use]
    pub fn is_unreachable(&self) -> bool {
        matches!(self, Self::Unreachable { .. })
    }

    /// A refusal that is no mirror's doing.
    pub(crate) fn here(self) -> TrustError {
        TrustError { kind: self, mirror: None }
    }

    pub(crate) fn at(self, mirror: &crate::fetch::Mirror) -> TrustError {
        TrustError { kind: self, mirror: Some(mirror.to_string()) }
    }

    /// From a failed fetch of `what`.
    pub(crate) fn of_fetch(what: &str, error: &FetchError) -> Self {
        let what = what.to_owned();
        match error {
            FetchError::TooLarge { limit_bytes } => {
                Self::TooLarge { what, limit_bytes: *limit_bytes }
            }
            FetchError::NotFound
            | FetchError::TimedOut
            | FetchError::Status(_)
            | FetchError::Unreachable(_) => Self::Unreachable { what, reason: error.to_string() },
        }
    }

    /// From the TUF library. `expires` looks up when the offered file of a role ended.
    pub(crate) fn of_tough(
        error: &Tough,
        now: Timestamp,
        expires: impl Fn(Role) -> Option<Timestamp>,
    ) -> Self {
        match error {
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
                what: format!("{role} is of version {fetched}, but {expected} was announced"),
            },
            Tough::SnapshotRoleMissing { .. }
            | Tough::SnapshotTargetsMetaMissing { .. }
            | Tough::MissingSnapshotMeta { .. }
            | Tough::TimestampMetaLength { .. }
            | Tough::MetaMissing { .. } => Self::Mixed { what: error.to_string() },
            Tough::ParseMetadata { role, source, .. } => {
                Self::Malformed { what: format!("{role} metadata"), reason: source.to_string() }
            }
            Tough::ParseTrustedMetadata { .. } | Tough::VerifyTrustedMetadata { .. } => {
                Self::BadRoot { reason: error.to_string() }
            }
            Tough::SystemTimeSteppedBackward { sys_time, latest_known_time } => {
                Self::ClockWentBack { now: *sys_time, seen: *latest_known_time }
            }
            Tough::Transport { url, source, .. } => {
                let name = url.path_segments().and_then(Iterator::last).unwrap_or("a file");
                Self::of_transport(name, source)
            }
            other => Self::Malformed { what: "metadata".to_owned(), reason: other.to_string() },
        }
    }

    fn of_transport(name: &str, error: &TransportError) -> Self {
        let cause = std::error::Error::source(error);
        if let Some(fetch) = cause.and_then(|cause| cause.downcast_ref::<FetchError>()) {
            return Self::of_fetch(name, fetch);
        }
        match cause.and_then(|cause| cause.downcast_ref::<Tough>()) {
            Some(Tough::HashMismatch { .. }) => {
                Self::Mixed { what: format!("{name} is not the file that was announced") }
            }
            // The fetch itself stayed within the limit of its kind of file, so this one is
            // complete, and longer than the signed length: another file of the same name.
            Some(Tough::MaxSizeExceeded { .. }) => {
                Self::Mixed { what: format!("{name} is longer than the file that was announced") }
            }
            _ => Self::Unreachable { what: name.to_owned(), reason: error.to_string() },
        }
    }
}
