//! Why something is not trusted: the fact of the core, and the error that revealed it.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use cohort_base::chain::{causes, chain};
use cohort_core::refused::{Refused, Role, WhyRefused};
use jiff::Timestamp;
use tough::schema::RoleType;
use tough::{TransportError, error::Error as Tough};

use crate::client::{FetchError, Mirror};

/// An error of any type, shared so that a refusal can be stored and returned.
type SharedCause = Arc<dyn Error + Send + Sync>;

/// A refusal: what is wrong, and which mirror offered it.
#[derive(Debug, Clone)]
pub struct TrustError {
    pub why: WhyRefused,
    /// The mirror that offered it; `None` for a peer or this server's disk.
    pub mirror: Option<String>,
    cause: Option<SharedCause>,
}

impl fmt::Display for TrustError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.why.fmt(f)?;
        self.mirror.as_ref().map_or(Ok(()), |mirror| write!(f, " (from {mirror})"))
    }
}

impl Error for TrustError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.cause.as_deref().map(|cause| cause as _)
    }
}

impl From<WhyRefused> for TrustError {
    fn from(why: WhyRefused) -> Self {
        TrustError { why, mirror: None, cause: None }
    }
}

impl TrustError {
    pub(crate) fn because(
        why: WhyRefused,
        cause: impl Into<Box<dyn Error + Send + Sync>>,
    ) -> TrustError {
        TrustError { cause: Some(Arc::from(cause.into())), ..why.into() }
    }

    pub(crate) fn at(self, mirror: &Mirror) -> TrustError {
        TrustError { mirror: Some(mirror.to_string()), ..self }
    }

    /// What the group and people are told.
    #[must_use]
    pub fn refused(&self) -> Refused {
        let (why, mirror) = (self.why.clone(), self.mirror.clone());
        Refused { why, mirror, causes: self.source().map(chain).unwrap_or_default() }
    }

    /// The error of a failed fetch of `file`.
    pub(crate) fn of_fetch(file: &str, error: FetchError) -> Self {
        let file = file.to_owned();
        match error {
            FetchError::TooLarge { limit_bytes } => {
                WhyRefused::TooLarge { file, limit_bytes }.into()
            }
            error => Self::because(WhyRefused::Unreachable { file }, error),
        }
    }

    /// The TUF library's error. `expires` looks up when the offered file of a role expired.
    pub(crate) fn of_tough(
        error: Tough,
        now: Timestamp,
        expires: impl Fn(RoleType) -> Option<Timestamp>,
    ) -> Self {
        let malformed = |file: &str| WhyRefused::Malformed { file: file.to_owned() };
        let mixed = |file: String| WhyRefused::Mixed { file };
        let older = |role, trusted, offered| WhyRefused::Older { role, trusted, offered };
        let why = match &error {
            Tough::VerifyMetadata { role, .. } => {
                return WhyRefused::WrongSignature { role: role_of(*role) }.into();
            }
            Tough::ExpiredMetadata { role, .. } => {
                return expired(role_of(*role), expires(*role).unwrap_or(now), now).into();
            }
            Tough::OlderMetadata { role, current_version, new_version, .. } => {
                return older(role_of(*role), *current_version, *new_version).into();
            }
            Tough::OlderSnapshotInTimestamp { snapshot_new, snapshot_old, .. } => {
                return older(Role::Snapshot, *snapshot_old, *snapshot_new).into();
            }
            Tough::SnapshotRoleRollback { old_role_version, new_role_version, .. } => {
                return older(Role::Targets, *old_role_version, *new_role_version).into();
            }
            Tough::SystemTimeSteppedBackward { sys_time, latest_known_time } => {
                return clock_went_back(*sys_time, *latest_known_time).into();
            }
            Tough::VersionMismatch { role, .. } => mixed(format!("{role}.json")),
            Tough::SnapshotRoleMissing { .. }
            | Tough::SnapshotTargetsMetaMissing { .. }
            | Tough::MissingSnapshotMeta { .. }
            | Tough::MetaMissing { .. } => mixed("snapshot.json".to_owned()),
            Tough::TimestampMetaLength { .. } => mixed("timestamp.json".to_owned()),
            Tough::ParseMetadata { role, .. } => malformed(&format!("{role}.json")),
            Tough::ParseTrustedMetadata { .. } | Tough::VerifyTrustedMetadata { .. } => {
                WhyRefused::BadRoot
            }
            Tough::Transport { url, source, .. } => {
                let name = url.path_segments().and_then(Iterator::last).unwrap_or("a file");
                match of_transport(source) {
                    Transport::Fetch(fetch) => return Self::of_fetch(name, fetch),
                    Transport::Mixed => mixed(name.to_owned()),
                    Transport::Other => malformed(name),
                }
            }
            _ => malformed("the metadata"),
        };
        Self::because(why, error)
    }
}

enum Transport {
    Fetch(FetchError),
    Mixed,
    Other,
}

fn of_transport(error: &TransportError) -> Transport {
    if let Some(fetch) = causes(error).find_map(|cause| cause.downcast_ref::<FetchError>()) {
        return Transport::Fetch(fetch.clone());
    }
    match causes(error).find_map(|cause| cause.downcast_ref::<Tough>()) {
        // A fetch within the limit for its kind of file that is longer than the signed length is
        // complete: another file with the same name.
        Some(Tough::HashMismatch { .. } | Tough::MaxSizeExceeded { .. }) => Transport::Mixed,
        _ => Transport::Other,
    }
}

pub(crate) fn role_of(role: RoleType) -> Role {
    match role {
        RoleType::Root => Role::Root,
        RoleType::Targets => Role::Targets,
        RoleType::DelegatedTargets => Role::DelegatedTargets,
        RoleType::Snapshot => Role::Snapshot,
        RoleType::Timestamp => Role::Timestamp,
    }
}

pub(crate) fn expired(role: Role, at: Timestamp, now: Timestamp) -> WhyRefused {
    WhyRefused::Expired { role, ago_s: seconds(at, now) }
}

pub(crate) fn clock_went_back(now: Timestamp, seen: Timestamp) -> WhyRefused {
    WhyRefused::ClockWentBack { by_s: seconds(now, seen) }
}

fn seconds(from: Timestamp, to: Timestamp) -> u64 {
    to.duration_since(from).as_secs().max(0).unsigned_abs()
}
