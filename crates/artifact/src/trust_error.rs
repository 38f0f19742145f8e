//! Why something is not trusted, in terms that an operator can act on.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use cohort_base::chain::causes;
use jiff::Timestamp;
use tough::schema::RoleType as Role;
use tough::{TransportError, error::Error as Tough};

use crate::client::{FetchError, Mirror};

/// An error of any type, shared so that a refusal can be stored and returned.
pub type SharedCause = Arc<dyn Error + Send + Sync>;

pub(crate) fn cause(error: impl Into<Box<dyn Error + Send + Sync>>) -> SharedCause {
    Arc::from(error.into())
}

/// A refusal: what is wrong, and which mirror offered it.
#[derive(Debug, Clone)]
pub struct TrustError {
    pub kind: TrustErrorKind,
    /// The mirror that offered it; `None` for a peer or this server's disk.
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
    #[error("{role} metadata is not signed by a trusted key")]
    WrongSignature { role: Role },
    /// Signed correctly, but too long ago: a mirror may be hiding newer metadata.
    #[error(
        "{role} metadata expired at {expired_at}; this server's clock says {now}: \
         the hub renews it daily, so the hub is down, the mirror is stale, or the clock is wrong"
    )]
    Expired { role: Role, expired_at: Timestamp, now: Timestamp },
    /// Older than what this server has already seen: a replay.
    #[error("{role} metadata has version {offered}, but version {trusted} was seen before")]
    Older { role: Role, trusted: u64, offered: u64 },
    /// Files from different states.
    #[error("metadata does not fit together")]
    Mixed(#[source] SharedCause),
    #[error("{what} is longer than the {limit_bytes} bytes allowed")]
    TooLarge { what: String, limit_bytes: u64 },
    #[error("this server's clock went back from {seen} to {now}: set its clock")]
    ClockWentBack {
        now: Timestamp,
        /// The latest time when something was verified.
        seen: Timestamp,
    },
    /// The repository does not have it.
    #[error("{what}")]
    NotFound { what: String },
    /// A mirror is unreachable, or does not respond.
    #[error("cannot fetch {what}")]
    Unreachable {
        what: String,
        #[source]
        source: FetchError,
    },
    #[error("no mirror of the repository is configured")]
    NoMirror,
    #[error("cannot create a client for mirrors")]
    Client(#[source] FetchError),
    #[error("cannot parse {what}")]
    Malformed {
        what: String,
        #[source]
        source: SharedCause,
    },
    /// The bytes of a signed file are not the signed ones.
    #[error("{what} does not have the signed bytes")]
    WrongBytes { what: String },
    /// A file that was signed as something else.
    #[error("a manifest or channel is for another {field}: wanted {wanted}, found {found}")]
    WrongContent { field: &'static str, wanted: String, found: String },
    #[error("invalid trusted root")]
    BadRoot(#[source] SharedCause),
    /// The state on this server's disk cannot be read or written.
    #[error("cannot use trust store {}", path.display())]
    Store {
        path: PathBuf,
        #[source]
        source: Arc<std::io::Error>,
    },
    /// The state on this server's disk is not what it wrote.
    #[error(
        "trust store {} is corrupt; removing it makes this server forget which metadata it saw",
        path.display()
    )]
    StoreDamaged {
        path: PathBuf,
        #[source]
        source: SharedCause,
    },
}

impl TrustErrorKind {
    /// Whether no mirror was reachable, so that retrying may help.
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

    /// The error of a failed fetch of `what`.
    pub(crate) fn of_fetch(what: &str, error: FetchError) -> Self {
        let what = what.to_owned();
        match error {
            FetchError::TooLarge { limit_bytes } => Self::TooLarge { what, limit_bytes },
            source => Self::Unreachable { what, source },
        }
    }

    /// The TUF library's error. `expires` looks up when the offered file of a role expired.
    pub(crate) fn of_tough(
        error: Tough,
        now: Timestamp,
        expires: impl Fn(Role) -> Option<Timestamp>,
    ) -> Self {
        match &error {
            Tough::VerifyMetadata { role, .. } => Self::WrongSignature { role: *role },
            Tough::ExpiredMetadata { role, .. } => {
                Self::Expired { role: *role, expired_at: expires(*role).unwrap_or(now), now }
            }
            Tough::OlderMetadata { role, current_version, new_version, .. } => {
                Self::Older { role: *role, trusted: *current_version, offered: *new_version }
            }
            Tough::OlderSnapshotInTimestamp { snapshot_new, snapshot_old, .. } => {
                Self::Older { role: Role::Snapshot, trusted: *snapshot_old, offered: *snapshot_new }
            }
            Tough::SnapshotRoleRollback { old_role_version, new_role_version, .. } => Self::Older {
                role: Role::Targets,
                trusted: *old_role_version,
                offered: *new_role_version,
            },
            Tough::VersionMismatch { role, fetched, expected, .. } => Self::Mixed(cause(format!(
                "{role} has version {fetched}, announced was {expected}"
            ))),
            Tough::SnapshotRoleMissing { .. }
            | Tough::SnapshotTargetsMetaMissing { .. }
            | Tough::MissingSnapshotMeta { .. }
            | Tough::TimestampMetaLength { .. }
            | Tough::MetaMissing { .. } => Self::Mixed(cause(error)),
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
                Some(Self::Mixed(cause(format!("{name} is not the announced file"))))
            }
            // The fetch stayed within the limit for its kind of file, so the file is complete and
            // longer than the signed length: another one with the same name.
            Tough::MaxSizeExceeded { .. } => {
                Some(Self::Mixed(cause(format!("{name} is longer than the announced file"))))
            }
            _ => None,
        }
    }
}
