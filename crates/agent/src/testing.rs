//! Agents of one group without their tasks, and a repository to verify against: for the tests of
//! this crate.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::time::Duration;

use async_trait::async_trait;
use axum::Json;
use cohort_artifact::{Keys, Lifetimes, PublishRequest, Repository};
use cohort_consensus::{Config, Node, RaftId};
use cohort_core::command::{COMMAND_VERSION, Command};
use cohort_core::ids::{AppId, Generation, Incarnation, MemberId, Revision, ServerId};
use cohort_core::orders::{
    ActivationOrder, AppOrders, Fence, FetchOrder, MemberOrder, Orders, Purpose,
};
use cohort_core::release::{Release, Rollback};
use cohort_core::state::Process;
use cohort_core::{Body, State};
use cohort_host::{
    Cgroups, Controls, Launch, Programs, ServiceControl, ServiceError, ServiceSpec, ServiceState,
    ServiceStatus, boot_time_ms,
};
use cohort_identity::{Alpn, Authority, ClientAuth, Peer, PeerName, Role, UnixTime};
use cohort_registry::{EmbeddedRegistry, Registry};
use cohort_server::asking::Received;
use cohort_server::member::{Input, Member, Proposed, View};
use cohort_server::membership::{Founder, founding_state};
use cohort_store::{Identity, RedbStore};
use cohort_wire::http::{Handler, serve};
use cohort_wire::hub::{JOIN, JoinAnswer};
use cohort_wire::limits::ServerLimits;
use cohort_wire::tls::IdentitySlot;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::config::AgentConfig;
use crate::control;
use crate::join::Joined;
use crate::member::{Inputs, Notes, Outputs, Queued, Shell, Waiter};
use crate::metrics::{Metrics, TimedStore};
use crate::proofs::proof_of;
use crate::runner::Runner;
use crate::shared::{MemberHandle, Shared};
use crate::start::open;
use crate::tasks::Tasks;
use cohort_wire::intent::{AppIntent, SignedIntent, Wanted};

pub(crate) const GROUP: &str = "linux-intel";
pub(crate) const PLATFORM: &str = "linux/intel";

/// A fleet's authority and its repository, in a folder of their own.
pub(crate) struct Lab {
    folder: tempfile::TempDir,
    pub(crate) authority: Authority,
    keys: Keys,
    pub(crate) repository: Repository,
}

pub(crate) fn web() -> AppId {
    "web".parse().unwrap()
}

impl Lab {
    pub(crate) async fn new() -> Lab {
        let folder = tempfile::tempdir().unwrap();
        let authority = Authority::create(&folder.path().join("ca"), UnixTime::now()).unwrap();
        let keys = Keys::generate().unwrap();
        let repository = folder.path().join("repository");
        let repository =
            Repository::create(&repository, &keys, Lifetimes::default()).await.unwrap();
        Lab { folder, authority, keys, repository }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Publishes a release of `web` on the channel `stable`.
    pub(crate) async fn publish(&self, version: &str) {
        let source = self.path(&format!("source-{version}"));
        std::fs::create_dir_all(&source).unwrap();
        std::fs::write(source.join("app"), version).unwrap();
        let (version, platform) = (version.parse().unwrap(), PLATFORM.parse().unwrap());
        let mut request = PublishRequest::new(&source, web(), version, platform);
        request.channel = Some("stable".parse().unwrap());
        self.repository.publish(&self.keys, &request).await.unwrap();
    }

    pub(crate) fn slot(&self, server: &str) -> Arc<IdentitySlot> {
        self.slot_of(&Peer::new(Role::Agent, server).unwrap())
    }

    pub(crate) fn slot_of(&self, peer: &Peer) -> Arc<IdentitySlot> {
        let day = Duration::from_secs(86_400);
        IdentitySlot::new(self.authority.make_identity(peer, day, UnixTime::now()).unwrap())
    }

    /// An agent that trusts this repository and fetches it from `mirror`, if there is one.
    pub(crate) async fn agent(&self, server: &str, mirror: Option<&Path>) -> Arc<Shared> {
        let root = self.repository.dir().join("metadata/root.json");
        let root = std::fs::read_to_string(root).unwrap();
        self.agent_with(server, mirror, Some(root)).await
    }

    pub(crate) async fn agent_with(
        &self,
        server: &str,
        mirror: Option<&Path>,
        trusted_root: Option<String>,
    ) -> Arc<Shared> {
        let data_dir = self.path(server);
        std::fs::create_dir_all(&data_dir).unwrap();
        let config = serde_json::json!({
            "server": server, "platform": PLATFORM, "data_dir": data_dir,
            "install_dir": data_dir.join("install"),
            // A look after this long is not seen by any test.
            "poll_interval": "1h",
        });
        let config: AgentConfig = serde_json::from_value(config).unwrap();
        let mirrors = mirror.iter().map(|path| path.display().to_string()).collect();
        let joined = Joined { trusted_root, mirrors, ..joined() };
        let (tasks, _ends) = Tasks::new();
        open(&config, &joined, &self.slot(server), tasks).await.unwrap()
    }

    /// Serves one protocol of an agent; returns its address.
    pub(crate) async fn serve(&self, server: &str, alpn: Alpn, handler: Handler) -> String {
        self.serve_as(Peer::new(Role::Agent, server).unwrap(), alpn, handler).await
    }

    pub(crate) async fn serve_as(&self, peer: Peer, alpn: Alpn, handler: Handler) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (slot, routes) = (self.slot_of(&peer), BTreeMap::from([(alpn, handler)]));
        let (limits, stop) = (ServerLimits::default(), Default::default());
        tokio::spawn(serve(listener, slot, ClientAuth::Required, routes, limits, stop));
        address
    }

    /// A hub that answers whoever joins; returns its address.
    pub(crate) async fn serve_joining(&self, answer: JoinAnswer) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router = axum::Router::new().route(JOIN, axum::routing::post(async || Json(answer)));
        let slot = self.slot_of(&Peer::new(Role::Hub, "hub").unwrap());
        let routes = BTreeMap::from([(Alpn::Hub, Handler::Http(router))]);
        let (limits, stop) = (ServerLimits::default(), Default::default());
        tokio::spawn(serve(listener, slot, ClientAuth::Optional, routes, limits, stop));
        address
    }

    pub(crate) async fn serve_control(&self, shared: &Arc<Shared>) -> String {
        let router = control::router(Arc::clone(shared));
        self.serve(shared.server().as_str(), Alpn::Control, Handler::Http(router)).await
    }

    /// An agent that reads and writes this registry instead of the hub's.
    pub(crate) async fn agent_over(
        &self,
        server: &str,
        registry: Arc<dyn Registry>,
    ) -> Arc<Shared> {
        let mut shared = self.agent(server, None).await;
        Arc::get_mut(&mut shared).unwrap().registry = registry;
        shared
    }

    pub(crate) fn registry(&self) -> Arc<EmbeddedRegistry> {
        Arc::new(EmbeddedRegistry::open(&self.path("registry.redb"), "test").unwrap())
    }

    /// The member of an agent on `s1`, on its thread: it has founded the group and leads it.
    pub(crate) async fn carry(&self, shared: &Arc<Shared>) -> MemberHandle {
        let member = self.member();
        let (inputs, queue) = Inputs::queue();
        let (sender, view) = watch::channel(Arc::new(member.view()));
        let notes =
            Notes { metrics: Arc::clone(&shared.metrics), events: Arc::clone(&shared.events) };
        let outputs = Outputs { send: Box::new(|_| {}), view: sender, notes };
        let shell = Shell::new(member, Arc::clone(&shared.contacts), outputs);
        let (ends, ended) = watch::channel(false);
        let thread = std::thread::Builder::new().spawn(move || {
            // The queue is gone before it is said that the thread has ended.
            let run = move || shell.run(&queue);
            run().unwrap();
            ends.send_replace(true);
        });
        thread.unwrap();
        let (member, incarnation) = (MemberId(1), Incarnation(1));
        let handle = MemberHandle { member, incarnation, inputs, view, ended };
        handle.view.clone().wait_for(|view| view.leads()).await.unwrap();
        shared.member.send_replace(Some(handle.clone()));
        handle
    }

    /// The policy of `web`, as an operator signed it.
    pub(crate) fn signed_policy(&self) -> Body {
        let policy = serde_json::json!({ "app": "web", "channel": "stable" });
        let (wanted, at) = (Wanted::Policy(policy.clone()), UnixTime::now().as_secs());
        let intent = AppIntent { app: web(), revision: Revision(1), wanted, at };
        let operator = self.slot_of(&Peer::new(Role::Operator, "ana").unwrap()).current();
        let proof = proof_of(&SignedIntent::sign(&operator, &intent).unwrap());
        let policy = serde_json::from_value(policy).unwrap();
        Body::SetPolicy { policy, revision: Revision(1), proof }
    }

    /// The view of a member `s1` that has founded the group and leads it.
    pub(crate) fn leading(&self) -> View {
        let mut member = self.member();
        let mut now_ms = 0;
        while !member.view().leads() {
            now_ms += 50;
            member.step(now_ms, &Default::default(), Vec::new()).unwrap();
        }
        member.view()
    }

    fn member(&self) -> Member<TimedStore> {
        let identity = Identity { group: GROUP.to_owned(), incarnation: 1, raft_id: RaftId(1) };
        let folder = tempfile::tempdir_in(self.folder.path()).unwrap().keep();
        let mut store = RedbStore::create(&folder, &identity).unwrap();
        let config = Config::new(GROUP, 1, RaftId(1));
        let data = serde_json::to_vec(&founded()).unwrap();
        Node::bootstrap(&mut store, &config, [RaftId(1)], data).unwrap();
        let store = TimedStore { store, seconds: Metrics::default().log_write_seconds };
        let (server, group) = ("s1".parse().unwrap(), GROUP.parse().unwrap());
        Member::open(0, server, group, store, config, None).unwrap()
    }
}

/// What the hub said to a server that joined: of a hub that nobody runs.
pub(crate) fn joined() -> Joined {
    Joined {
        hub: PeerName::new("hub").unwrap(),
        hub_addresses: vec!["127.0.0.1:1".to_owned()],
        trusted_root: None,
        mirrors: Vec::new(),
        group: GROUP.parse().unwrap(),
        labels: BTreeMap::new(),
        platform: PLATFORM.parse().unwrap(),
        rack: None,
        members: Vec::new(),
    }
}

/// The order to fetch what is on the channel.
pub(crate) async fn order(shared: &Shared) -> FetchOrder {
    let repository = shared.repository.as_ref().unwrap();
    let (channel, platform) = ("stable".parse().unwrap(), PLATFORM.parse().unwrap());
    let offer = repository.latest(&web(), &channel, &platform).await.unwrap();
    FetchOrder { release: offer.release(), from_mirror: true, sources: Vec::new() }
}

/// A manager of services whose services run, or not, as the test says.
#[derive(Debug, Default)]
pub(crate) struct Guard {
    pub(crate) down: AtomicBool,
}

#[async_trait]
impl ServiceControl for Guard {
    async fn start(&self, _: &ServiceSpec) -> Result<(), ServiceError> {
        Ok(())
    }

    async fn stop(&self, _: &str, _: Duration) -> Result<(), ServiceError> {
        Ok(())
    }

    async fn status(&self, _: &str) -> Result<ServiceStatus, ServiceError> {
        let state = match self.down.load(Ordering::Relaxed) {
            true => ServiceState::Waiting,
            false => ServiceState::Running { pid: 1 },
        };
        Ok(ServiceStatus { state, ..ServiceStatus::default() })
    }
}

/// The runner of an agent, with apps on the test's own runtime.
pub(crate) fn runner(shared: &Arc<Shared>, guard: &Arc<Guard>) -> Runner {
    let controls = Controls { guard: Arc::clone(guard) as _, systemd: None };
    let programs = Programs::new(Launch::confine_for_tests(), Cgroups::default());
    let (apps, shared) = (Handle::current(), Arc::clone(shared));
    Runner { apps, shared, controls, programs, user: None }
}

/// A release whose artifact exists nowhere.
pub(crate) fn release(version: &str) -> Release {
    Release {
        version: version.parse().unwrap(),
        platform: PLATFORM.parse().unwrap(),
        artifact: "ab".repeat(32).parse().unwrap(),
        manifest: "cd".repeat(32).parse().unwrap(),
        length: 1,
        unpacked_bytes: 64 << 30,
        entries: 250_000,
        rollback: Rollback::Revert,
    }
}

/// An installation of `web` that Cohort finds on the server.
pub(crate) fn install(shared: &Shared) -> Release {
    let release = release("1.0.0");
    let web = shared.config.install_dir.join("web");
    let name = format!("releases/1.0.0-{}", &release.artifact.as_str()[..12]);
    std::fs::create_dir_all(web.join(&name)).unwrap();
    let service = "[service]\ncommand = [\"./run\"]\n";
    let marker = serde_json::json!({ "schema": 2, "release": release, "service_file": service });
    std::fs::write(web.join(&name).join(".cohort-release.json"), marker.to_string()).unwrap();
    std::os::unix::fs::symlink(name, web.join("current")).unwrap();
    release
}

/// Orders for `web`: to run this release, and nothing to do.
pub(crate) fn web_runs(release: Option<Release>) -> AppOrders {
    AppOrders {
        app: web(),
        fetch: Vec::new(),
        activation: None,
        in_service: Some(release.is_some()),
        run: release,
        owes: false,
        checks: Vec::new(),
        trial: None,
        keep: Vec::new(),
        holds: Vec::new(),
    }
}

/// The order for this change of `web`, which may begin.
pub(crate) fn activation(generation: u64, release: Option<Release>) -> ActivationOrder {
    ActivationOrder {
        fence: Fence { incarnation: Incarnation(1), generation: Generation(generation) },
        release,
        undo_to: None,
        purpose: Purpose::Wave,
        avoid: Vec::new(),
        drain_ms: 0,
        min_healthy_ms: 0,
        healthy_deadline_ms: 1_000,
        confirm_within_ms: 30_000,
        warm_up_ms: 0,
        stop_despite_hooks: false,
        checks: Vec::new(),
        hold: None,
    }
}

/// Orders of the first incarnation, asked for now and fresh for the time of a test.
pub(crate) fn received(apps: Vec<AppOrders>, member: Option<u64>) -> Received {
    let orders = Orders {
        group: GROUP.parse().unwrap(),
        incarnation: Incarnation(1),
        server: server("s1"),
        apps,
        member: member.map(|member| MemberOrder { member: MemberId(member) }),
        members: Vec::new(),
        heard: cohort_core::ids::BootEpoch(0),
    };
    Received {
        orders,
        asked_ms: boot_time_ms(),
        valid_ms: 600_000,
        leader: None,
        voters: Default::default(),
    }
}

/// A group of one server, `s1`.
pub(crate) fn founded() -> State {
    let founder = Founder {
        server: "s1".parse().unwrap(),
        address: "127.0.0.1:1".to_owned(),
        rack: None,
        process: Process::default(),
        labels: BTreeMap::new(),
        platform: PLATFORM.parse().unwrap(),
    };
    founding_state(GROUP.parse().unwrap(), Incarnation(1), founder)
}

pub(crate) fn apply(state: &mut State, body: Body) {
    let (version, incarnation) = (COMMAND_VERSION, Incarnation(1));
    let actor = "test".to_owned();
    state.apply(&Command { version, incarnation, actor, request: None, body }).unwrap();
}

pub(crate) fn server(name: &str) -> ServerId {
    name.parse().unwrap()
}

/// A server joins the group.
pub(crate) fn add(name: &str) -> Body {
    let (address, process) =
        (format!("{name}:1"), Process { life: 0, host: "10.0.0.2".to_owned() });
    Body::AddServer { server: server(name), address, rack: None, process }
}

/// The policy of `web`: everything is default.
pub(crate) fn policy() -> Body {
    let policy = serde_json::json!({ "app": "web", "channel": "stable" });
    let policy = serde_json::from_value(policy).unwrap();
    Body::SetPolicy { policy, revision: Revision(1), proof: Default::default() }
}

/// A handle on a member whose view and inputs are the test's.
pub(crate) fn handle(view: View) -> (MemberHandle, watch::Sender<Arc<View>>, Receiver<Queued>) {
    let (inputs, queue) = Inputs::queue();
    let (sender, view) = watch::channel(Arc::new(view));
    let (_, ended) = watch::channel(false);
    let (member, incarnation) = (MemberId(1), Incarnation(1));
    (MemberHandle { member, incarnation, inputs, view, ended }, sender, queue)
}

/// The next input for a member, from a task of this test.
pub(crate) fn next_input(queue: &Receiver<Queued>) -> Input {
    let next = tokio::task::block_in_place(|| queue.recv_timeout(Duration::from_secs(20)));
    match next.unwrap() {
        Queued::Plain(input) => input,
        other => panic!("unexpected request {other:?}"),
    }
}

/// The next command proposed to a member, from a task of this test; it is answered as carried out.
/// How errands ended is skipped.
pub(crate) fn next_proposal(queue: &Receiver<Queued>) -> Command {
    let next = || tokio::task::block_in_place(|| queue.recv_timeout(Duration::from_secs(20)));
    let (command, reply) = loop {
        match next().unwrap() {
            Queued::Request(Input::Propose { command, .. }, _, Waiter::Proposed(reply)) => {
                break (command, reply);
            }
            Queued::Plain(Input::Errand { .. }) => {}
            other => panic!("no proposal: {other:?}"),
        }
    };
    let _ = reply.send(Proposed::Done { index: 1, rejection: None });
    *command
}
