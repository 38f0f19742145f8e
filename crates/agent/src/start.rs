//! Starting and stopping an agent.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cohort_artifact::client::{AddressError, ClientLimits};
use cohort_artifact::{Mirror, TrustOptions, TrustedRepository};
use cohort_core::ids::BootEpoch;
use cohort_distribute::{
    ArtifactStore, Budget, ByteCounters, Downloads, FetchContext, Guides, Limits, MirrorList,
    ServeLimits, StoreOptions, WirePeers, bulk_router, follow,
};
use cohort_host::guard::{GuardClient, GuardLaunch};
use cohort_host::{Controls, RunAs, ServiceControl, Systemd};
use cohort_identity::{Alpn, ClientAuth, Identity, Peer, Role};
use cohort_registry::{Registry, RemoteRegistry};
use cohort_wire::agent::CONTROL_VERSION;
use cohort_wire::frame::Connections;
use cohort_wire::http::{Client, Handler, Target, serve, serve_plain};
use cohort_wire::limits::ServerLimits;
use cohort_wire::tls::IdentitySlot;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::app_thread::AppThread;
use crate::budgets::Budgets;
use crate::config::AgentConfig;
use crate::contacts::SharedContacts;
use crate::error::AgentError;
use crate::join::{Joined, advertised, join};
use crate::killswitch::KillSwitch;
use crate::membership::Starter;
use crate::metrics::Metrics;
use crate::net::{AddressBook, Net, take};
use crate::probe::{Probe, Readiness, router as probe_router};
use crate::runner::Runner;
use crate::shared::Shared;
use crate::transfers::Transfers;
use crate::{budgets, control, renewal};

/// How long a clean stop waits for the hand-over of leadership.
const HAND_OVER_MAX: Duration = Duration::from_secs(3);

/// Runs an agent until `shutdown`, then hands leadership over and stops. Services keep running.
///
/// # Errors
/// When it cannot start, or can no longer trust what is on its disk.
pub async fn run(config: AgentConfig, shutdown: CancellationToken) -> Result<(), AgentError> {
    prepare(&config)?;
    loop {
        match live(&config, &shutdown).await {
            Err(AgentError::NewIncarnation(incarnation)) => {
                tracing::warn!(%incarnation, "group recovered, starting over");
            }
            Err(AgentError::OtherMember(member)) => {
                // A member id is never used again; what its log had, the group has.
                let folder = config.data_dir.join("member");
                let aside = config.data_dir.join(format!("member.retired-{member}"));
                let path = aside.display();
                tracing::warn!(%member, aside = %path, "carrying another member, old log kept");
                std::fs::rename(&folder, &aside).map_err(|source| AgentError::File {
                    path: folder,
                    what: "set aside",
                    source,
                })?;
            }
            ended => return ended,
        }
    }
}

/// Runs until `shutdown`, or until this agent has to start over: a new incarnation, another member.
async fn live(config: &AgentConfig, shutdown: &CancellationToken) -> Result<(), AgentError> {
    let run_as = crate::service_user::resolve(config.service_user.as_deref())?;
    let (identity, joined) = tokio::select! {
        joined = join(config) => joined?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let stop = CancellationToken::new();
    let parts = Parts::open(config, joined, identity).await?;
    let servers = CancellationToken::new();
    let serving = parts.serve(&stop, &servers).await?;
    let (ended, mut ends) = mpsc::channel(4);
    // Steps of apps end when it is dropped.
    let apps = AppThread::start().map_err(AgentError::Thread)?;
    let Parts { shared, downloads, .. } = &parts;
    let (shared, downloads) = (Arc::clone(shared), Arc::clone(downloads));
    parts.run(apps.handle(), run_as, &ended, &stop).await?;
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    let outcome = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        ended = ends.recv() => ended.map_or(Ok(()), Err),
    };
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    // The member first: its log must be closed before the agent starts over.
    end_member(&shared).await;
    stop.cancel();
    servers.cancel();
    downloads.stop().await;
    let _ = tokio::time::timeout(Duration::from_secs(2), serving).await;
    outcome
}

/// What an agent is made of, before anything of it runs.
struct Parts {
    joined: Joined,
    boot_epoch: BootEpoch,
    slot: Arc<IdentitySlot>,
    shared: Arc<Shared>,
    downloads: Arc<Downloads>,
    readiness: Arc<Readiness>,
    counters: Arc<ByteCounters>,
    upload: Arc<Budget>,
}

impl Parts {
    /// Opens everything on disk.
    async fn open(
        config: &AgentConfig,
        joined: Joined,
        identity: Identity,
    ) -> Result<Parts, AgentError> {
        let boot_epoch = cohort_host::next_boot_epoch(&config.data_dir)
            .map_err(AgentError::kept("boot epoch"))?;
        let slot = IdentitySlot::new(identity);
        let client = Client::new(Arc::clone(&slot));
        client.mark_bulk(config.packet_marking);
        let kill_dir = config.data_dir.join("kill");
        let kill = KillSwitch::open(&kill_dir, Arc::clone(&slot), joined.group.clone())
            .map_err(AgentError::kept("kill register"))?;
        let mirrors = if config.mirrors.is_empty() { &joined.mirrors } else { &config.mirrors };
        let mirrors = mirrors
            .iter()
            .map(|mirror| mirror.parse())
            .collect::<Result<Vec<Mirror>, AddressError>>()
            .map_err(AgentError::config("mirrors"))?;
        let repository = repository(config, &joined, &mirrors).await?;
        let store = ArtifactStore::open(config.data_dir.join("artifacts"), StoreOptions::default())
            .map_err(AgentError::kept("artifact store"))?;
        let (download, upload) = (Arc::new(Budget::default()), Arc::new(Budget::default()));
        let guides = Arc::new(Guides::default());
        let counters = Arc::new(ByteCounters::default());
        let mirrors = MirrorList::new(mirrors, ClientLimits::default())
            .map_err(AgentError::config("mirrors"))?;
        let downloads = Arc::new(Downloads::new(FetchContext {
            store: Arc::new(store),
            mirrors: Arc::new(mirrors),
            peers: WirePeers::new(client.clone()),
            limits: Arc::new(Limits::default()),
            counters: Arc::clone(&counters),
            download: Arc::clone(&download),
            guides: Arc::clone(&guides),
        }));
        let shared = Arc::new(Shared {
            group: joined.group.clone(),
            registry: registry(config, &joined, &client)?,
            client,
            kill: Arc::new(kill),
            contacts: Arc::new(SharedContacts::default()),
            book: Arc::new(AddressBook::default()),
            metrics: Arc::new(Metrics::default()),
            member: watch::Sender::new(None),
            members: Mutex::new(Vec::new()),
            repository,
            tracker: Arc::default(),
            guides,
            download,
            leader: Mutex::new(None),
            kept: Mutex::new(BTreeMap::new()),
            hub: hub_targets(config, &joined)?,
            config: config.clone(),
        });
        shared.learn_members(&joined.members);
        let readiness = Arc::new(Readiness::default());
        Ok(Parts { joined, boot_epoch, slot, shared, downloads, readiness, counters, upload })
    }

    /// Listens: the peer port for agents and people, the plain port for probes.
    async fn serve(
        &self,
        stop: &CancellationToken,
        servers: &CancellationToken,
    ) -> Result<JoinHandle<()>, AgentError> {
        let config = &self.shared.config;
        let listener = listen(&config.listen).await?;
        let probe_listener = listen(&config.probe_listen).await?;
        let raft = raft_handler(Arc::clone(&self.shared), self.boot_epoch.0, stop.clone());
        let limits = ServeLimits { upload: Arc::clone(&self.upload), ..ServeLimits::default() };
        let bulk = bulk_router(Arc::clone(&self.downloads.context().store), limits);
        let routes = BTreeMap::from([
            (Alpn::Control, Handler::Http(control::router(Arc::clone(&self.shared)))),
            (Alpn::Bulk, Handler::Http(bulk)),
            (Alpn::Raft, raft),
        ]);
        let probe = Probe {
            readiness: Arc::clone(&self.readiness),
            metrics: Arc::clone(&self.shared.metrics),
            counters: Arc::clone(&self.counters),
        };
        let plain = probe_router(probe);
        tokio::spawn(serve_plain(probe_listener, plain, ServerLimits::default(), servers.clone()));
        Ok(tokio::spawn(serve(
            listener,
            Arc::clone(&self.slot),
            ClientAuth::Required,
            routes,
            ServerLimits { dscp_bulk: config.packet_marking, ..ServerLimits::default() },
            servers.clone(),
        )))
    }

    /// Starts the runner, the starter of the member, and what runs beside them.
    async fn run(
        self,
        apps: Handle,
        run_as: Option<RunAs>,
        ended: &mpsc::Sender<AgentError>,
        stop: &CancellationToken,
    ) -> Result<(), AgentError> {
        let Parts { joined, boot_epoch, slot, shared, downloads, readiness, upload, .. } = self;
        let config = &shared.config;
        let controls = controls(config).await?;
        let orders = watch::Sender::new(None);
        let starter = Starter {
            shared: Arc::clone(&shared),
            joined: joined.clone(),
            boot_epoch: boot_epoch.0,
            repository: shared.repository.clone(),
            orders: orders.subscribe(),
            ended: ended.clone(),
            stop: stop.clone(),
        };
        spawn_or_end("starter", starter.run(), ended);
        tokio::spawn(follow(
            Arc::clone(&downloads),
            Arc::clone(&shared.guides),
            shared.group.clone(),
            CONTROL_VERSION,
            Arc::new(Transfers(Arc::clone(&shared))),
            stop.clone(),
        ));
        let (download, tracker) = (Arc::clone(&shared.download), Arc::clone(&shared.tracker));
        let kept = Budgets { download, upload, tracker };
        tokio::spawn(budgets::keep(config.clone(), kept, stop.clone()));
        let runner = Runner {
            apps,
            shared: Arc::clone(&shared),
            boot_epoch,
            controls,
            run_as,
            downloads,
            repository: shared.repository.clone(),
            readiness,
            orders,
            ended: ended.clone(),
            stop: stop.clone(),
        };
        spawn_or_end("runner", runner.run(), ended);
        tracing::info!(
            server = %config.server,
            group = %shared.group,
            address = advertised(config),
            boot_epoch = boot_epoch.0,
            "agent started"
        );
        tokio::spawn(renewal::renew(Arc::clone(&shared), slot, joined, stop.clone()));
        Ok(())
    }
}

/// Runs a task that the agent cannot do without: its error or panic stops the agent.
pub(crate) fn spawn_or_end(
    what: &'static str,
    task: impl Future<Output = Result<(), AgentError>> + Send + 'static,
    ended: &mpsc::Sender<AgentError>,
) {
    spawn_on_or_end(&Handle::current(), what, task, ended);
}

/// As [`spawn_or_end`], on another runtime.
pub(crate) fn spawn_on_or_end(
    runtime: &Handle,
    what: &'static str,
    task: impl Future<Output = Result<(), AgentError>> + Send + 'static,
    ended: &mpsc::Sender<AgentError>,
) {
    let ended = ended.clone();
    let task = runtime.spawn(task);
    tokio::spawn(async move {
        let error = match task.await {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(join) if join.is_panic() => AgentError::Panicked(what),
            Err(_) => return,
        };
        let _ = ended.send(error).await;
    });
}

fn prepare(config: &AgentConfig) -> Result<(), AgentError> {
    use std::os::unix::fs::PermissionsExt as _;
    for (path, mode) in [(&config.data_dir, 0o700), (&config.install_dir, 0o755)] {
        let fail = |source| AgentError::File { path: path.clone(), what: "created", source };
        if !path.exists() {
            std::fs::create_dir_all(path).map_err(fail)?;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).map_err(fail)?;
        }
    }
    Ok(())
}

/// The hub's API, at each of its addresses.
fn hub_targets(config: &AgentConfig, joined: &Joined) -> Result<Vec<Target>, AgentError> {
    let hub =
        Peer::new(Role::Hub, joined.hub.as_str()).map_err(AgentError::kept("record of joining"))?;
    let addresses = if config.hub.is_empty() { &joined.hub_addresses } else { &config.hub };
    let target =
        |address: &String| Target { address: address.clone(), peer: hub.clone(), alpn: Alpn::Hub };
    Ok(addresses.iter().map(target).collect())
}

fn registry(
    config: &AgentConfig,
    joined: &Joined,
    client: &Client,
) -> Result<Arc<dyn Registry>, AgentError> {
    let hub =
        Peer::new(Role::Hub, joined.hub.as_str()).map_err(AgentError::kept("record of joining"))?;
    let addresses = if config.hub.is_empty() { &joined.hub_addresses } else { &config.hub };
    if addresses.is_empty() {
        return Err(AgentError::config("hub")("it names no hub, and neither did joining"));
    }
    Ok(Arc::new(RemoteRegistry::new(client.clone(), &hub, addresses)))
}

async fn repository(
    config: &AgentConfig,
    joined: &Joined,
    mirrors: &[Mirror],
) -> Result<Option<Arc<TrustedRepository>>, AgentError> {
    let Some(root) = &joined.trusted_root else { return Ok(None) };
    let options = TrustOptions {
        root: root.as_bytes().to_vec(),
        store: config.data_dir.join("trust"),
        mirrors: mirrors.to_vec(),
        limits: ClientLimits::default(),
    };
    TrustedRepository::open(options)
        .await
        .map(|repository| Some(Arc::new(repository)))
        .map_err(AgentError::kept("trusted metadata"))
}

async fn listen(address: &str) -> Result<TcpListener, AgentError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| AgentError::Listen { address: address.to_owned(), source })
}

/// The guard for commands, systemd for units where it runs.
async fn controls(config: &AgentConfig) -> Result<Controls, AgentError> {
    let folder = config.data_dir.join("guard");
    let program = std::env::current_exe().map_err(|source| AgentError::File {
        path: PathBuf::from("/proc/self/exe"),
        what: "found",
        source,
    })?;
    let args: Vec<OsString> =
        vec!["guard".into(), "--detach".into(), "--dir".into(), folder.clone().into()];
    let guard = GuardClient::new(folder, Some(GuardLaunch { program, args }));
    let mut systemd: Option<Arc<dyn ServiceControl>> = None;
    if Path::new("/run/systemd/system").exists() {
        match Systemd::connect(config.data_dir.join("systemd")).await {
            Ok(control) => systemd = Some(Arc::new(control)),
            Err(error) => {
                tracing::warn!(%error, "no answer from systemd, cannot run units");
            }
        }
    }
    Ok(Controls { guard: Arc::new(guard), systemd })
}

/// Raft connections from peers; refused while this server carries no member.
fn raft_handler(shared: Arc<Shared>, boot_epoch: u64, stop: CancellationToken) -> Handler {
    let newest = Arc::new(Connections::default());
    Handler::raw(move |peer, _from, stream| {
        let (shared, newest, stop) = (Arc::clone(&shared), Arc::clone(&newest), stop.clone());
        async move {
            let Some(handle) = shared.handle() else { return };
            let net = Net {
                group: shared.group.clone(),
                incarnation: handle.incarnation,
                server: shared.server().clone(),
                boot_epoch,
                client: shared.client.clone(),
                book: Arc::clone(&shared.book),
                inputs: handle.inputs,
                stop,
            };
            take(net, newest, peer, stream).await;
        }
    })
}

/// Hands leadership over before stopping, so that nobody waits for a failure detector. The log is
/// closed when this returns.
async fn end_member(shared: &Shared) {
    let Some(handle) = shared.handle() else { return };
    if let Some(done) = handle.inputs.stop().await
        && tokio::time::timeout(HAND_OVER_MAX, done).await.is_err()
    {
        tracing::warn!("leadership not handed over in time");
    }
    let mut ended = handle.ended.clone();
    if tokio::time::timeout(HAND_OVER_MAX, ended.wait_for(|ended| *ended)).await.is_err() {
        tracing::warn!("the member did not stop in time");
    }
}
