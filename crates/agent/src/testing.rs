//! Agents of one group without their tasks, and a repository to verify against: for the tests of
//! this crate.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::Receiver;
use std::time::Duration;

use cohort_artifact::{Keys, Lifetimes, PublishRequest, Repository};
use cohort_consensus::{Config, Node, RaftId};
use cohort_core::command::{COMMAND_VERSION, Command};
use cohort_core::ids::{AppId, Incarnation, MemberId, Revision, ServerId};
use cohort_core::orders::FetchOrder;
use cohort_core::{Body, State};
use cohort_identity::{Alpn, Authority, ClientAuth, Peer, PeerName, Role, UnixTime};
use cohort_registry::{EmbeddedRegistry, Registry};
use cohort_server::member::{Input, Member, Proposed, View};
use cohort_server::membership::{Founder, founding_state};
use cohort_store::{Identity, RedbStore};
use cohort_wire::http::{Handler, serve};
use cohort_wire::limits::ServerLimits;
use cohort_wire::tls::IdentitySlot;
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::config::AgentConfig;
use crate::control;
use crate::join::Joined;
use crate::member::{Inputs, Notes, Outputs, Queued, Shell, Waiter};
use crate::metrics::{Metrics, TimedStore};
use crate::shared::{MemberHandle, Shared};
use crate::start::open;
use crate::tasks::Tasks;

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
        let keys = Keys::create(&folder.path().join("keys")).unwrap();
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
            // A look after this long is not seen by any test.
            "poll_interval": "1h",
        });
        let config: AgentConfig = serde_json::from_value(config).unwrap();
        let joined = Joined {
            schema: 1,
            hub: PeerName::new("hub").unwrap(),
            hub_addresses: vec!["127.0.0.1:1".to_owned()],
            trusted_root,
            mirrors: mirror.iter().map(|path| path.display().to_string()).collect(),
            group: GROUP.parse().unwrap(),
            labels: BTreeMap::new(),
            members: Vec::new(),
        };
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
        let notes = Notes(Arc::clone(&shared.metrics));
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

/// The order to fetch what is on the channel.
pub(crate) async fn order(shared: &Shared) -> FetchOrder {
    let repository = shared.repository.as_ref().unwrap();
    let (channel, platform) = ("stable".parse().unwrap(), PLATFORM.parse().unwrap());
    let offer = repository.latest(&web(), &channel, &platform).await.unwrap();
    FetchOrder { release: offer.release(), from_mirror: true, sources: Vec::new() }
}

/// A group of one server, `s1`.
pub(crate) fn founded() -> State {
    let founder = Founder {
        server: "s1".parse().unwrap(),
        address: "127.0.0.1:1".to_owned(),
        rack: None,
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
    Body::AddServer { server: server(name), address: format!("{name}:1"), rack: None }
}

/// The policy of `web`: everything is default.
pub(crate) fn policy() -> Body {
    let policy = serde_json::json!({ "app": "web", "channel": "stable" });
    let policy = serde_json::from_value(policy).unwrap();
    Body::SetPolicy { policy, revision: Revision(1) }
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
pub(crate) fn next_proposal(queue: &Receiver<Queued>) -> Command {
    let next = tokio::task::block_in_place(|| queue.recv_timeout(Duration::from_secs(20)));
    let Queued::Request(Input::Propose { command, .. }, _, Waiter::Proposed(reply)) = next.unwrap()
    else {
        panic!("no proposal")
    };
    let _ = reply.send(Proposed::Done { index: 1, rejection: None });
    *command
}
