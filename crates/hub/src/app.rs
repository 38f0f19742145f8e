//! State shared by all handlers.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cohort_core::ids::ServerId;
use cohort_identity::{Authority, BACKDATED, JoinTokens, Peer, Role, Secret, UnixTime};
use cohort_registry::{EmbeddedRegistry, keys};
use cohort_wire::http::{ApiError, Caller, Certificate};
use cohort_wire::kill::DurableKill;
use cohort_wire::tls::IdentitySlot;
use parking_lot::RwLock;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinError;
use tokio_util::sync::CancellationToken;

use crate::audit::AuditLog;
use crate::auth::{Author, group_of, server_of};
use crate::bucket::BucketCopy;
use crate::config::HubConfig;
use crate::heard::Heard;
use crate::metrics::Metrics;
use crate::quota::Quota;
use crate::removed::Removed;

/// The hub, as its handlers see it.
pub(crate) struct App {
    pub(crate) config: HubConfig,
    pub(crate) registry: EmbeddedRegistry,
    /// `None` if certificates are issued elsewhere.
    pub(crate) authority: RwLock<Option<Arc<Authority>>>,
    /// Held while the authority is replaced.
    pub(crate) rotating: Mutex<()>,
    /// Servers that have said that their certificate is of the authority that issues.
    pub(crate) followed: parking_lot::Mutex<BTreeSet<ServerId>>,
    pub(crate) identity: Arc<IdentitySlot>,
    /// Proves the registry's revisions. Of the authority, which no restored registry takes back;
    /// without one, of the hub's certificate.
    pub(crate) secret: Secret,
    pub(crate) tokens: Arc<JoinTokens>,
    pub(crate) removed: Arc<Removed>,
    pub(crate) audit: Arc<AuditLog>,
    pub(crate) heard: Heard,
    pub(crate) kill: Arc<DurableKill>,
    pub(crate) watches: Arc<Semaphore>,
    /// Held while `timestamp.json` changes: during an upload or the renewal.
    pub(crate) publishing: Mutex<()>,
    pub(crate) unpublished: Arc<Quota>,
    pub(crate) bucket: Option<Arc<BucketCopy>>,
    /// Held while kill registers are written to the registry: the newest is written last.
    pub(crate) publishing_kill: Mutex<()>,
    pub(crate) metrics: Metrics,
    pub(crate) stopping: CancellationToken,
    /// The actual port, even if the configuration says 0.
    pub(crate) repository_port: u16,
    /// The actual port, even if the configuration says 0.
    pub(crate) api_port: u16,
}

impl App {
    /// The author of a request.
    pub(crate) fn author(&self, caller: Caller, certificate: Certificate) -> Author {
        let Caller(peer) = caller;
        let Certificate { group, not_before } = certificate;
        // The hub's own authority backdates.
        let backdated_s = self.authority.read().as_ref().map_or(0, |_| BACKDATED.as_secs());
        let issued_at = not_before.as_secs() + backdated_s;
        let removed_at = || self.removed.removed_at(&server_of(&peer));
        let removed = peer.role == Role::Agent && removed_at().is_some_and(|at| issued_at <= at);
        Author { peer, group, removed }
    }

    /// When a certificate issued now counts as issued: after the last removal of its holder, also
    /// if that was just now, or the clock has gone back since.
    pub(crate) fn issue_time(&self, peer: &Peer) -> UnixTime {
        let removed_at = match peer.role {
            Role::Agent => self.removed.removed_at(&server_of(peer)),
            Role::Viewer | Role::Operator | Role::Publisher | Role::Hub => None,
        };
        // Everybody compares the certificate's own time with a revocation's.
        let revoked_at = self.identity.revocations().revoked_at(peer);
        let after_s = removed_at.max(revoked_at.map(|at| at + BACKDATED.as_secs()));
        let after_s = after_s.map_or(0, |at| at + 1);
        UnixTime::since_unix_epoch(Duration::from_secs(after_s.max(now().as_secs())))
    }

    /// Notes that a group lives, if the caller is a server of one.
    pub(crate) fn note_heard(&self, author: &Author) {
        if author.peer.role == Role::Agent
            && let Ok(group) = self.registry.read(|state| group_of(author, state))
        {
            self.heard.heard(Instant::now(), group, server_of(&author.peer));
        }
    }

    /// An agent whose certificate names its group, and of which the registry has no record: the
    /// registry has lost something. Once that is confirmed, servers may return late; an even older
    /// file would have a lower revision than their leaders know.
    pub(crate) fn has_forgotten(&self, author: &Author) -> bool {
        !self.registry.has_leapt()
            && author.peer.role == Role::Agent
            && author.group.is_some()
            && !author.removed
            && self.registry.get(&keys::server(&server_of(&author.peer))).is_none()
    }

    /// The authority, or an error that says why servers cannot join here.
    pub(crate) fn authority(&self) -> Result<Arc<Authority>, ApiError> {
        self.authority.read().clone().ok_or_else(|| {
            ApiError::unavailable(
                "no_authority",
                "this hub has no authority, so it issues no certificates",
            )
            .hint(
                "create one with `cohort init --dir DIR`, \
                 or bring certificates from your own authority",
            )
        })
    }
}

/// The wall clock, for certificates and tokens.
pub(crate) fn now() -> UnixTime {
    UnixTime::since_unix_epoch(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// Runs disk work outside the tasks that handle requests.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    tokio::task::spawn_blocking(work).await
}
