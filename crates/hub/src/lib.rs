//! The hub: repository, registry and API in one process.
//!
//! **What it is.** The durable registry behind an API over mutual TLS, with the authority that
//! admits servers and people; the repository as static files; the renewal of its timestamp. One
//! data directory, two ports.
//!
//! **What it must never know.** How a rollout proceeds: groups decide on their own, and the hub
//! stores what they and operators say. Nor is it trusted with what runs: even its owner cannot make
//! a server run anything that the release keys did not sign.
//!
//! **Where to start reading.** [`HubConfig`], then [`Hub`]; `auth` says who may do what, `refusal`
//! maps failures to responses.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod app;
mod audit;
mod auth;
mod authority;
mod bucket;
mod config;
mod heard;
mod joining;
mod metrics;
mod operating;
mod placing;
mod quota;
mod refusal;
mod registry_api;
mod removed;
mod room;
mod routes;
mod standing;
mod upkeep;
mod upload;

use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use cohort_base::{Cause, FileError, OnPath as _, chain, durable};
use cohort_identity::{
    Alpn, Authority, AuthorityError, ClientAuth, Identity, IdentityError, JoinTokens, LIFETIME,
    Peer, RedeemError, Role, TokenState,
};
use cohort_mirror::BucketError;
use cohort_registry::{EmbeddedRegistry, RegistryError, Seen};
use cohort_wire::http::{Endpoints, Handler, serve, serve_plain};
use cohort_wire::hub::{JOIN, JOIN_BYTES_MAX, KILL};
use cohort_wire::kill::{DurableKill, KillError};
use cohort_wire::limits::ServerLimits;
use cohort_wire::revocation::{RevocationError, Revocations};
use cohort_wire::tls::IdentitySlot;
use parking_lot::RwLock;
use tokio::net::TcpListener;
use tokio::sync::{Mutex, Semaphore};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use config::{HubConfig, RepositoryAccess};
pub use upload::{UploadError, upload};

use app::{App, now};
use audit::{AuditError, AuditLog};
use bucket::BucketCopy;
use heard::Heard;
use metrics::Metrics;
use quota::Quota;
use removed::Removed;

/// Why a hub cannot start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    #[error("the hub's configuration is invalid")]
    Config(#[source] Cause),
    #[error("the hub's configuration is invalid: repository_bucket")]
    Bucket(#[from] BucketError),
    #[error(transparent)]
    Folder(#[from] FileError),
    #[error("cannot open the hub's registry")]
    Registry(#[from] cohort_registry::OpenError),
    /// The registry cannot be written.
    #[error("the hub's registry failed at start")]
    RegistryFailed(#[from] RegistryError),
    /// Confirming discards the evidence; a person looks at it first.
    #[error(
        "the hub's registry was lost or restored, which nobody can have seen yet: start the hub \
         without --confirm-restored, wait until `cohort group list` shows the groups, and confirm \
         then"
    )]
    ConfirmedTooEarly,
    /// A flag that stays would confirm the next loss.
    #[error(
        "nothing to confirm: the hub's registry was neither lost nor restored; start the hub \
         without --confirm-restored"
    )]
    NothingToConfirm,
    #[error("cannot use the hub's authority")]
    Authority(#[from] AuthorityError),
    #[error("cannot open the audit trail")]
    Audit(#[from] AuditError),
    #[error(
        "the hub has no certificate in {} and no authority to issue one; \
         run `cohort init --dir DIR` first",
        path.display()
    )]
    NoIdentity { path: PathBuf },
    #[error("cannot use the hub's identity")]
    Identity(#[from] IdentityError),
    #[error("the hub's certificate is that of {peer}; it needs one of the role hub")]
    NotAHub { peer: Box<Peer> },
    #[error("cannot open the hub's join tokens")]
    Tokens(#[from] RedeemError),
    #[error("cannot open the hub's kill registers")]
    Kill(#[from] KillError),
    #[error(transparent)]
    Revocations(#[from] RevocationError),
    /// A port is in use, or the address is not ours.
    #[error("cannot listen on {address} ({what})")]
    Listen { address: SocketAddr, what: &'static str, source: io::Error },
    #[error("a task of the hub failed")]
    Part(#[source] tokio::task::JoinError),
}

/// The endpoints of the API, and who may use them.
#[must_use]
pub fn endpoints() -> Endpoints {
    routes::endpoints().1
}

/// A running hub; stops with [`Hub::run_until`].
pub struct Hub {
    app: Arc<App>,
    api_address: SocketAddr,
    repository_address: SocketAddr,
    parts: JoinSet<()>,
}

impl Hub {
    /// Starts a hub. On return, both ports accept requests.
    ///
    /// # Errors
    /// [`HubError`].
    pub async fn start(config: HubConfig) -> Result<Self, HubError> {
        config.validate().map_err(|reason| HubError::Config(reason.into()))?;
        let (data, repository) = (&config.data_dir, &config.repository_dir());
        durable::private_folder(data).on_path("create", data)?;
        std::fs::create_dir_all(repository).on_path("create", repository)?;
        let authority = open_authority(&config)?;
        let identity = open_identity(&config, authority.as_deref())?;
        let secret = authority.as_ref().map_or_else(
            || identity.secret(Seen::PURPOSE),
            |authority| authority.secret(Seen::PURPOSE),
        );
        let new_store = cohort_identity::sha256_hex(identity.chain_pem().as_bytes());
        let tokens = JoinTokens::open(&config.tokens_dir())?;
        let registry = open_registry(&config, &tokens, &new_store)?;
        if config.confirm_restored && registry.just_detected() {
            return Err(HubError::ConfirmedTooEarly);
        }
        if config.confirm_restored && !registry.restored() {
            return Err(HubError::NothingToConfirm);
        }
        if registry.restored() {
            // The tokens may be from the same backup: one that was used since is unused there.
            let tokens_revoked = tokens.revoke_unused()?;
            tracing::warn!(tokens_revoked, "registry is restored: unused join tokens revoked");
        }
        if config.confirm_restored {
            registry.confirm_restored(now().as_secs()).await?;
            let revision = registry.revision();
            tracing::warn!(revision, "restored registry confirmed");
        }
        let metrics = Metrics::default();
        let bucket = config.repository_bucket.as_deref().map(|url| {
            let failing = metrics.bucket_failing.clone();
            BucketCopy::open(url, config.repository_dir(), failing).map(Arc::new)
        });
        let bucket = bucket.transpose()?;
        let (api, api_address) = listen(config.listen, "API").await?;
        let (repository, repository_address) =
            listen(config.repository_listen, "repository").await?;
        let app = Arc::new(App {
            registry,
            authority: RwLock::new(authority),
            rotating: Mutex::new(()),
            followed: parking_lot::Mutex::default(),
            secret,
            identity: IdentitySlot::refusing(
                identity,
                Revocations::open(&config.data_dir.join("revocations.json"), now())?,
            ),
            tokens: Arc::new(tokens),
            audit: Arc::new(AuditLog::open(&config.data_dir.join("audit"))?),
            removed: Arc::new(Removed::open(&config.removed_dir(), now())?),
            heard: Heard::new(Instant::now()),
            kill: Arc::new(DurableKill::open(&config.data_dir.join("kill"), None)?),
            watches: Arc::new(Semaphore::new(config.watches_max)),
            publishing: Mutex::new(()),
            unpublished: Arc::new(Quota::new(config.unpublished_bytes_max)),
            bucket,
            publishing_kill: Mutex::new(()),
            metrics,
            stopping: CancellationToken::new(),
            repository_port: repository_address.port(),
            api_port: api_address.port(),
            config,
        });
        // A crash may have happened between the latch and the registry.
        if let Err(error) = operating::publish_kill(&app).await {
            tracing::error!(reason = chain(&error), "cannot write kill registers to the registry");
        }
        upkeep::sweep_uploads(&app);
        let parts = spawn_parts(&app, api, repository);
        tracing::info!(%api_address, %repository_address, "hub is up");
        Ok(Hub { app, api_address, repository_address, parts })
    }

    /// The API's actual address.
    #[must_use]
    pub fn api_address(&self) -> SocketAddr {
        self.api_address
    }

    /// The actual address of repository, probes and metrics.
    #[must_use]
    pub fn repository_address(&self) -> SocketAddr {
        self.repository_address
    }

    /// Runs until `shutdown`, then lets requests in progress finish.
    ///
    /// # Errors
    /// [`HubError::Part`] if a task panicked; the others are stopped then.
    pub async fn run_until(mut self, shutdown: CancellationToken) -> Result<(), HubError> {
        let mut failed = None;
        tokio::select! {
            () = shutdown.cancelled() => {}
            Some(ended) = self.parts.join_next() => failed = ended.err(),
        }
        self.app.stopping.cancel();
        while let Some(ended) = self.parts.join_next().await {
            failed = failed.or(ended.err());
        }
        tracing::info!("hub is down");
        failed.map_or(Ok(()), |error| Err(HubError::Part(error)))
    }
}

/// Runs a hub until `shutdown`.
///
/// # Errors
/// [`HubError`].
pub async fn run(config: HubConfig, shutdown: CancellationToken) -> Result<(), HubError> {
    let hub = Hub::start(config).await?;
    if let Err(error) = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]) {
        tracing::debug!(%error, "cannot tell the service manager that the hub is ready");
    }
    hub.run_until(shutdown).await
}

/// Everything that runs until the hub stops.
fn spawn_parts(app: &Arc<App>, api: TcpListener, repository: TcpListener) -> JoinSet<()> {
    let mut parts = JoinSet::new();
    let api_limits = ServerLimits {
        body_limits: vec![
            ("/v1/repository/".to_owned(), upload::UPLOAD_BYTES_MAX),
            (JOIN.to_owned(), JOIN_BYTES_MAX),
        ],
        urgent_path: Some(KILL),
        refusals: app.metrics.refusals("api"),
        ..ServerLimits::default()
    };
    let mut handlers = BTreeMap::from([(Alpn::Hub, Handler::Http(routes::api(app)))]);
    if app.config.repository_access == RepositoryAccess::Fleet {
        handlers.insert(Alpn::Bulk, Handler::Http(routes::repository(app)));
    }
    parts.spawn(serve(
        api,
        Arc::clone(&app.identity),
        ClientAuth::Optional,
        handlers,
        api_limits,
        app.stopping.clone(),
    ));
    let refusals = app.metrics.refusals("repository");
    let plain_limits = ServerLimits { refusals, ..ServerLimits::repository() };
    parts.spawn(serve_plain(repository, routes::plain(app), plain_limits, app.stopping.clone()));
    parts.spawn(upkeep::run(Arc::clone(app)));
    if let Some(copy) = &app.bucket {
        parts.spawn(bucket::run(Arc::clone(copy), app.stopping.clone()));
    }
    parts
}

async fn listen(
    address: SocketAddr,
    what: &'static str,
) -> Result<(TcpListener, SocketAddr), HubError> {
    let failed = |source| HubError::Listen { address, what, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

/// A fleet whose servers have joined has had a registry: a missing file was lost.
fn open_registry(
    config: &HubConfig,
    tokens: &JoinTokens,
    new_store: &str,
) -> Result<EmbeddedRegistry, cohort_registry::OpenError> {
    let path = config.data_dir.join("registry.redb");
    let has_servers = tokens.list().iter().any(|token| {
        token.grant.role == Role::Agent && matches!(token.state, TokenState::Used { .. })
    });
    if has_servers {
        EmbeddedRegistry::open_again(&path, new_store)
    } else {
        EmbeddedRegistry::open(&path, new_store)
    }
}

fn open_authority(config: &HubConfig) -> Result<Option<Arc<Authority>>, HubError> {
    let dir = config.authority_dir();
    if !dir.join("ca.pem").exists() {
        tracing::warn!(dir = %dir.display(), "no authority: servers cannot join here");
        return Ok(None);
    }
    Ok(Some(Arc::new(Authority::open(&dir)?)))
}

fn open_identity(config: &HubConfig, authority: Option<&Authority>) -> Result<Identity, HubError> {
    let dir = config.identity_dir();
    let identity = if Identity::exists(&dir) {
        Identity::load(&dir)?
    } else {
        let Some(authority) = authority else {
            return Err(HubError::NoIdentity { path: dir });
        };
        let peer = Peer::new(Role::Hub, config.name.as_str())
            .map_err(|error| HubError::Config(error.into()))?;
        let identity = authority.make_identity(&peer, LIFETIME, now())?;
        identity.save(&dir)?;
        identity
    };
    if identity.peer().role != Role::Hub {
        return Err(HubError::NotAHub { peer: Box::new(identity.peer().clone()) });
    }
    Ok(identity)
}
