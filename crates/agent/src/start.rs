//! Starting and stopping an agent.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::Permissions;
use std::hash::{BuildHasher as _, RandomState};
use std::io;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use cohort_artifact::client::{ClientLimits, MirrorClient};
use cohort_artifact::{Mirror, TrustOptions, TrustedRepository};
use cohort_base::retry::Schedule;
use cohort_base::{OnPath as _, chain, durable};
use cohort_core::ids::ServerId;
use cohort_distribute::{
    ArtifactStore, Budget, Downloads, FetchContext, Limits, MirrorList, ServeLimits, WirePeers,
    bulk_router, follow,
};
use cohort_host::guard::GuardClient;
use cohort_host::{
    Cgroups, Controls, Launch, Programs, ServiceControl, Systemd, check_trusted, lacking,
};
use cohort_identity::{Alpn, ClientAuth, UnixTime};
use cohort_registry::{RemoteRegistry, SeenRecord};
use cohort_server::copies::contested_pause_ms;
use cohort_server::membership::failure_domain;
use cohort_wire::agent::KILL;
use cohort_wire::frame::Connections;
use cohort_wire::http::{Client, Handler, serve, serve_plain};
use cohort_wire::limits::ServerLimits;
use cohort_wire::revocation::Revocations;
use cohort_wire::tls::{IdentitySlot, repository_reader};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::sync::{Notify, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::app_thread::AppThread;
use crate::budgets::Budgets;
use crate::checking::AT_ONCE;
use crate::complaint::Complaints;
use crate::config::{AgentConfig, Reload};
use crate::error::AgentError;
use crate::events::READERS_MAX as EVENT_READERS_MAX;
use crate::join::{Joined, advertised, check_advertised, join};
use crate::killswitch::KillSwitch;
use crate::logs::READERS_MAX;
use crate::membership::{Starter, retire};
use crate::metrics::{Lacking, Metrics};
use crate::net::{Net, take};
use crate::probe::{Readiness, router as probe_router};
use crate::proofs::Proofs;
use crate::runner::Runner;
use crate::shared::{MemberHandle, Shared};
use crate::space::Held;
use crate::tasks::Tasks;
use crate::transfers::Transfers;
use crate::{budgets, control, renewal, space, whereabouts};

/// Tries to get a port that is taken: after an end, the guard starts a service ever later.
const TAKEN_TRIES: u32 = 20;
const TAKEN_LOOK: Schedule = Schedule::new(Duration::from_millis(1), Duration::from_millis(200));

/// A life of this length or more was not contested by another machine's: the pauses start over.
const UNCONTESTED_AFTER: Duration = Duration::from_secs(3600);
/// How long a clean stop waits for the hand-over of leadership.
const HAND_OVER_MAX: Duration = Duration::from_secs(3);

/// Runs an agent until `shutdown`, then hands leadership over and stops. Services keep running.
///
/// # Errors
/// When it cannot start, or can no longer trust what is on its disk.
pub async fn run(
    config: AgentConfig,
    reload: Reload,
    shutdown: CancellationToken,
) -> Result<(), AgentError> {
    config.timing()?;
    let mut went_back = 0;
    loop {
        // Nothing that an agent must persist fits on a full disk: it waits, and says for what.
        if !space::wait(&config.data_dir, &shutdown).await {
            return Ok(());
        }
        prepare(&config)?;
        let began = Instant::now();
        let ended = live(&config, &reload, &shutdown).await;
        if began.elapsed() >= UNCONTESTED_AFTER {
            went_back = 0;
        }
        match ended {
            Err(AgentError::Retired { incarnation, member }) => {
                retire(&config.data_dir, incarnation, member)?;
            }
            Err(error @ AgentError::Displaced { .. }) => {
                tracing::warn!(error = chain(&error), "starting over");
                pause_if_contested(&mut went_back, &config.server, &shutdown).await;
            }
            Err(AgentError::EarlierDisk { own, heard }) => {
                let error = chain(&AgentError::EarlierDisk { own, heard });
                tracing::warn!(error, "starting over, after that start");
                pause_if_contested(&mut went_back, &config.server, &shutdown).await;
                cohort_host::pass_boot_epoch(&config.data_dir, heard)
                    .map_err(AgentError::kept("boot epoch"))?;
            }
            Err(AgentError::WentBack { incarnation, member, source }) => {
                let error = chain(&source);
                tracing::warn!(error, "the group gives this server a new member number");
                pause_if_contested(&mut went_back, &config.server, &shutdown).await;
                retire(&config.data_dir, incarnation, member)?;
            }
            Err(error) if space::is_exhausted(&error) => {
                tracing::error!(error = chain(&error), "cannot write, starting over");
                tokio::time::sleep(space::LOOK_EVERY).await;
            }
            ended => return ended,
        }
    }
}

/// Two machines that run as one server would take it from each other all the time.
async fn pause_if_contested(went_back: &mut u32, server: &ServerId, shutdown: &CancellationToken) {
    *went_back += 1;
    let Some(pause) = contested_pause_ms(*went_back).map(Duration::from_millis) else { return };
    tracing::error!(
        %server,
        pause_s = pause.as_secs(),
        "another machine runs as this server; stop one of them, empty the copy's data_dir and let \
         it join under a name of its own",
    );
    tokio::select! {
        () = tokio::time::sleep(pause) => {}
        () = shutdown.cancelled() => {}
    }
}

/// Runs until `shutdown`, or until this agent has to start over: its member is retired.
async fn live(
    config: &AgentConfig,
    reload: &Reload,
    shutdown: &CancellationToken,
) -> Result<(), AgentError> {
    check_advertised(config)?;
    let held = Held::take(&config.data_dir)?;
    let user = crate::service_user::resolve(config.service_user.as_deref())?;
    let (identity, joined) = tokio::select! {
        joined = join(config) => joined?,
        () = shutdown.cancelled() => return Ok(()),
    };
    let rack = failure_domain(config.rack.as_deref(), &config.labels, &joined.labels);
    let install_dir = check_trusted(&config.install_dir)?;
    let config = &AgentConfig { rack, install_dir, ..config.clone() };
    let (tasks, mut ends) = Tasks::new();
    let _stop = tasks.stop.clone().drop_guard();
    let revocations = Revocations::open(&config.data_dir.join("revocations.json"), UnixTime::now())
        .map_err(AgentError::kept("revocations"))?;
    let slot = IdentitySlot::refusing(identity, revocations);
    let shared = open(config, &joined, &slot, tasks.clone()).await?;
    let servers = CancellationToken::new();
    let upload = Arc::new(Budget::default());
    let serving = listen_and_serve(&shared, &slot, &upload, &servers).await?;
    // Steps of apps end when it is dropped.
    let apps = AppThread::start().map_err(AgentError::Thread)?;
    let (controls, programs) = (controls(config).await?, programs(&shared).await);
    let download = Arc::clone(&shared.downloads.context().download);
    let kept = Budgets { download, upload, tracker: Arc::clone(&shared.tracker) };
    let limits = budgets::keep(config.clone(), Arc::clone(reload), kept, tasks.stop.clone());
    tasks.spawn("transfer limits", limits);
    run_tasks(&shared, joined, slot, held);
    let (apps, runs) = (apps.handle(), Arc::clone(&shared));
    let runner = Runner { apps, shared: runs, controls, programs, user };
    tasks.spawn_or_end("runner", runner.run());
    tracing::info!(
        server = %config.server,
        group = %shared.group,
        address = advertised(config),
        boot_epoch = shared.boot_epoch.0,
        "agent started"
    );
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Ready]);
    let outcome = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        ended = ends.recv() => ended.map_or(Ok(()), Err),
    };
    let _ = sd_notify::notify(false, &[sd_notify::NotifyState::Stopping]);
    // The member first: its log must be closed before the agent starts over.
    end_member(&shared).await;
    tasks.stop.cancel();
    servers.cancel();
    shared.downloads.stop().await;
    let _ = tokio::time::timeout(Duration::from_secs(2), serving).await;
    outcome
}

/// Opens everything on disk.
pub(crate) async fn open(
    config: &AgentConfig,
    joined: &Joined,
    slot: &Arc<IdentitySlot>,
    tasks: Tasks,
) -> Result<Arc<Shared>, AgentError> {
    let boot_epoch =
        cohort_host::next_boot_epoch(&config.data_dir).map_err(AgentError::kept("boot epoch"))?;
    let client = Client::new(Arc::clone(slot));
    client.mark_bulk(config.packet_marking);
    let kill_dir = config.data_dir.join("kill");
    let metrics = Arc::<Metrics>::default();
    let (own, counts) = (joined.group.clone(), Arc::clone(&metrics));
    let kill = KillSwitch::open(&kill_dir, &config.kill_file, Arc::clone(slot), own, counts)
        .map_err(AgentError::kept("kill register"))?;
    let mirrors = joined.mirrors(config)?;
    let reader = repository_reader(slot).map_err(AgentError::kept("identity"))?;
    let reads = MirrorClient::new(ClientLimits::default())
        .and_then(|client| client.with_certificate(reader))
        .map_err(AgentError::kept("client of mirrors"))?;
    let repository = repository(config, joined, &mirrors, &reads).await?;
    let store = ArtifactStore::open(config.data_dir.join("artifacts"))
        .map_err(AgentError::kept("artifact store"))?;
    let mirrors = MirrorList::new(mirrors, reads).map_err(AgentError::config("mirrors"))?;
    let downloads = Downloads::new(FetchContext {
        store: Arc::new(store),
        mirrors: Arc::new(mirrors),
        peers: WirePeers::new(client.clone()),
        limits: Arc::new(Limits::default()),
        counters: Arc::default(),
        download: Arc::default(),
        guides: Arc::default(),
    });
    let hub = joined.hub_targets(config)?;
    let seen = SeenRecord::open(config.data_dir.join("hub-revision.json"));
    let registry = RemoteRegistry::new(client.clone(), hub.clone(), seen);
    let shared = Shared {
        record: joined.record(config),
        group: joined.group.clone(),
        boot_epoch,
        // The standard library's random keys: no two processes share them.
        life: RandomState::new().hash_one(std::process::id()),
        refusal: Mutex::default(),
        complaints: Complaints::default(),
        proofs: Proofs::default(),
        clock_off: AtomicBool::default(),
        tasks,
        registry: Arc::new(registry),
        identity: Arc::clone(slot),
        exchanged: Mutex::default(),
        client,
        kill: Arc::new(kill),
        contacts: Arc::default(),
        health_pace: Mutex::default(),
        book: Mutex::default(),
        metrics,
        member: watch::Sender::new(None),
        repository,
        tracker: Arc::default(),
        downloads: Arc::new(downloads),
        readiness: Readiness::default(),
        orders: watch::Sender::new(None),
        doing: Mutex::default(),
        disk: watch::Sender::default(),
        step_changed: Notify::new(),
        leader: Mutex::default(),
        log_readers: Semaphore::new(READERS_MAX),
        events: Arc::default(),
        event_readers: Semaphore::new(EVENT_READERS_MAX),
        checkers: Semaphore::new(AT_ONCE),
        check_contexts: Mutex::default(),
        looked_at_services: tokio::sync::Mutex::default(),
        lacking: OnceLock::new(),
        kept: Mutex::default(),
        retired: Mutex::default(),
        hub,
        config: config.clone(),
    };
    shared.book.lock().learn(&joined.members);
    Ok(Arc::new(shared))
}

/// Listens: the peer port for agents and people, the plain port for probes.
async fn listen_and_serve(
    shared: &Arc<Shared>,
    slot: &Arc<IdentitySlot>,
    upload: &Arc<Budget>,
    servers: &CancellationToken,
) -> Result<JoinHandle<()>, AgentError> {
    let config = &shared.config;
    let listener = listen(&config.listen, config).await?;
    let probe_listener = listen(&config.probe_listen, config).await?;
    let limits = ServeLimits { upload: Arc::clone(upload), ..ServeLimits::default() };
    let bulk = bulk_router(Arc::clone(&shared.downloads.context().store), limits);
    let routes = BTreeMap::from([
        (Alpn::Control, Handler::Http(control::router(Arc::clone(shared)))),
        (Alpn::Bulk, Handler::Http(bulk)),
        (Alpn::Raft, raft_handler(Arc::clone(shared))),
    ]);
    let plain = probe_router(Arc::clone(shared));
    let refusals = shared.metrics.refusals("probe");
    let probe_limits = ServerLimits { refusals, ..ServerLimits::probes() };
    let plain = serve_plain(probe_listener, plain, probe_limits, servers.clone());
    shared.tasks.spawn("probe port", plain);
    Ok(tokio::spawn(serve(
        listener,
        Arc::clone(slot),
        ClientAuth::Required,
        routes,
        ServerLimits {
            dscp_bulk: config.packet_marking,
            urgent_path: Some(KILL),
            refusals: shared.metrics.refusals("peer"),
            ..ServerLimits::default()
        },
        servers.clone(),
    )))
}

/// Starts the starter of the member, and what runs beside it.
fn run_tasks(shared: &Arc<Shared>, joined: Joined, slot: Arc<IdentitySlot>, held: Held) {
    let tasks = &shared.tasks;
    tasks.spawn(
        "transfer reports",
        follow(
            Arc::clone(&shared.downloads),
            Arc::clone(&shared.downloads.context().guides),
            Arc::new(Transfers(Arc::clone(shared))),
            tasks.stop.clone(),
        ),
    );
    tasks.spawn("kill file", Arc::clone(&shared.kill).watch_file());
    tasks.spawn("address", whereabouts::tell(Arc::clone(shared)));
    tasks.spawn_or_end("watch of the disk", space::watch(Arc::clone(shared), held));
    tasks.spawn("renewal", renewal::renew(Arc::clone(shared), slot));
    let starter = Starter { shared: Arc::clone(shared), joined, orders: shared.orders.subscribe() };
    tasks.spawn_or_end("starter", starter.run());
}

/// Creates the agent's directories: only the agent may read its data.
fn prepare(config: &AgentConfig) -> Result<(), AgentError> {
    let (data, install) = (&config.data_dir, &config.install_dir);
    // A process's directory there belongs to its effective user.
    let own = std::fs::metadata("/proc/self").on_path("inspect", Path::new("/proc/self"))?.uid();
    check_owner(data, own)?;
    // Before anything is written there.
    for dir in [data, install] {
        check_trusted(dir)?;
    }
    durable::private_folder(data).on_path("create", data)?;
    if !install.exists() {
        durable::create_folders(install).on_path("create", install)?;
        // Services may run as another user, whatever the agent's umask.
        let open = Permissions::from_mode(0o755);
        std::fs::set_permissions(install, open).on_path("set the mode of", install)?;
    }
    Ok(())
}

/// Checks that the agent's user owns its directory, if there is one.
fn check_owner(dir: &Path, own: u32) -> Result<(), AgentError> {
    let owner = match std::fs::metadata(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        metadata => metadata.on_path("inspect", dir)?.uid(),
    };
    if owner == own {
        return Ok(());
    }
    Err(AgentError::Owner { dir: dir.to_owned(), owner, own })
}

async fn repository(
    config: &AgentConfig,
    joined: &Joined,
    mirrors: &[Mirror],
    client: &MirrorClient,
) -> Result<Option<Arc<TrustedRepository>>, AgentError> {
    let Some(root) = &joined.trusted_root else { return Ok(None) };
    let options = TrustOptions {
        root: root.as_bytes().to_vec(),
        store: config.data_dir.join("trust"),
        mirrors: mirrors.to_vec(),
        client: client.clone(),
    };
    TrustedRepository::open(options)
        .await
        .map(|repository| Some(Arc::new(repository)))
        .map_err(AgentError::kept("trusted metadata"))
}

/// Listens. A service may have taken the port while the agent was away, which would keep every
/// order from it: that service is ended, and the guard starts it again.
async fn listen(address: &str, config: &AgentConfig) -> Result<TcpListener, AgentError> {
    let mut pauses = TAKEN_LOOK.pauses();
    let mut tries = TAKEN_TRIES;
    loop {
        let source = match TcpListener::bind(address).await {
            Ok(listener) => return Ok(listener),
            Err(source) => source,
        };
        let taken = source.kind() == io::ErrorKind::AddrInUse;
        let at = address.parse().ok().filter(|_| taken && tries > 0);
        let failed = AgentError::Listen { address: address.to_owned(), source };
        let Some(at) = at else { return Err(failed) };
        tries -= 1;
        let guards = guard_dir(config);
        let look = tokio::task::spawn_blocking(move || {
            cohort_host::take_port(at, &Cgroups::of(&guards).unwrap_or_default())
        });
        if let Ok(Some(holder)) = look.await {
            return Err(AgentError::Taken { address: address.to_owned(), holder });
        }
        tracing::warn!(address, "the port is taken; services that may have it were ended");
        tokio::time::sleep(pauses.next_pause()).await;
    }
}

/// The directory of this server's guard.
pub(crate) fn guard_dir(config: &AgentConfig) -> PathBuf {
    config.data_dir.join("guard")
}

/// The guard for commands, systemd for units where it runs.
async fn controls(config: &AgentConfig) -> Result<Controls, AgentError> {
    let folder = guard_dir(config);
    let program = std::env::current_exe().on_path("find", Path::new("/proc/self/exe"))?;
    let args: Vec<OsString> =
        vec!["guard".into(), "--detach".into(), "--dir".into(), folder.clone().into()];
    let guard = GuardClient::new(folder, Some(Launch { program, args }));
    let mut systemd: Option<Arc<dyn ServiceControl>> = None;
    if Path::new("/run/systemd/system").exists() {
        match Systemd::connect(config.data_dir.join("systemd")).await {
            Ok(control) => systemd = Some(Arc::new(control)),
            Err(error) => {
                tracing::warn!(error = chain(&error), "no answer from systemd, cannot run units");
            }
        }
    }
    Ok(Controls { guard: Arc::new(guard), systemd })
}

/// How hooks and checks run. Ends those of an earlier agent that was killed.
async fn programs(shared: &Shared) -> Arc<Programs> {
    let cgroups = Cgroups::of(&shared.config.data_dir).unwrap_or_else(|error| {
        tracing::debug!(%error, "no cgroups");
        Cgroups::default()
    });
    let lacking = lacking(&cgroups);
    for lack in &lacking {
        tracing::warn!(lack = lack.name(), "releases cannot be confined as they ask: {lack}");
        shared.metrics.lacking.get_or_create(&Lacking { what: lack.name() }).set(1);
    }
    let _once = shared.lacking.set(lacking);
    cgroups.sweep().await;
    Programs::new(Launch::confine(), cgroups)
}

/// Raft connections from peers; refused while this server carries no member.
fn raft_handler(shared: Arc<Shared>) -> Handler {
    let newest = Arc::new(Connections::default());
    Handler::raw(move |peer, stream| {
        let (shared, newest) = (Arc::clone(&shared), Arc::clone(&newest));
        async move {
            let Some(MemberHandle { incarnation, inputs, .. }) = shared.handle() else { return };
            take(Net { shared, incarnation, inputs }, newest, peer, stream).await;
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

#[cfg(test)]
mod start_test {
    use super::*;

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn a_directory_of_another_user_is_refused_and_a_missing_one_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let own = std::fs::metadata(folder.path()).unwrap().uid();
        check_owner(folder.path(), own).unwrap();
        check_owner(&folder.path().join("missing"), own + 1).unwrap();
        let refused = check_owner(folder.path(), own + 1);
        let Err(AgentError::Owner { dir, owner, own: user }) = refused else { panic!() };
        assert_eq!((dir.as_path(), owner, user), (folder.path(), own, own + 1));
    }

    #[test]
    fn only_the_agent_reads_its_data_and_every_user_finds_the_installed_apps() {
        let folder = tempfile::tempdir().unwrap();
        let (data, install) = (folder.path().join("data"), folder.path().join("opt/install"));
        let config = serde_json::json!({
            "server": "web-1", "platform": "intel", "data_dir": data, "install_dir": install,
        });
        let config: AgentConfig = serde_json::from_value(config).unwrap();
        prepare(&config).unwrap();
        assert_eq!((mode(&data), mode(&install)), (0o700, 0o755));
        for path in [&data, &install] {
            std::fs::set_permissions(path, Permissions::from_mode(0o750)).unwrap();
        }
        prepare(&config).unwrap();
        assert_eq!((mode(&data), mode(&install)), (0o700, 0o750), "the operator's choice stays");
    }
}
