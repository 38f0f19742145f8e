//! How this server comes to carry the group's log, and starts to.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cohort_artifact::TrustedRepository;
use cohort_consensus::{Config, Node, RaftId};
use cohort_core::command::COMMAND_VERSION;
use cohort_core::ids::{Incarnation, MemberId};
use cohort_core::{Body, Command, Event, State};
use cohort_registry::typed;
use cohort_server::asking::Received;
use cohort_store::{Identity as StoreIdentity, RedbStore};
use cohort_wire::agent::{CLAIM_MEMBER, CONTROL_VERSION, ClaimMemberAnswer, ClaimMemberRequest};
use cohort_wire::http::Call;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::duties;
use crate::error::AgentError;
use crate::join::{Joined, advertised};
use crate::member::{Inputs, Member, MemberError, Outputs, View};
use crate::net::{Net, Senders};
use crate::shared::{MemberHandle, Shared};

/// How often a member without a leader asks whether the group was recovered.
const LIFE_EVERY: Duration = Duration::from_secs(5);

/// With a leader only every so many looks: once a minute.
const LED_LOOKS: u64 = 12;

/// What starting a member needs.
pub(crate) struct Starter {
    pub shared: Arc<Shared>,
    pub joined: Joined,
    pub boot_epoch: u64,
    pub repository: Option<Arc<TrustedRepository>>,
    pub orders: watch::Receiver<Option<Arc<Received>>>,
    /// A member that cannot go on ends the agent.
    pub ended: mpsc::Sender<AgentError>,
    pub stop: CancellationToken,
}

impl Starter {
    fn folder(&self) -> PathBuf {
        self.shared.config.data_dir.join("member")
    }

    /// Starts the member that this server carries, founds the group, or waits to be told to carry
    /// a member.
    pub(crate) async fn run(mut self) -> Result<(), AgentError> {
        let folder = self.folder();
        std::fs::create_dir_all(&folder).map_err(|source| AgentError::File {
            path: folder.clone(),
            what: "created",
            source,
        })?;
        let kept = |error: cohort_store::StoreError| AgentError::Kept(error.to_string());
        if let Some(identity) = RedbStore::identity_in(&folder).map_err(kept)? {
            if identity.group != self.shared.group.as_str() {
                return Err(AgentError::Kept(format!(
                    "{} belongs to the group {}, and this server to {}; move it aside",
                    folder.display(),
                    identity.group,
                    self.shared.group
                )));
            }
            match self.newer_life(Incarnation(identity.incarnation)).await {
                Some(incarnation) => self.set_aside(&folder, &identity, incarnation)?,
                None => {
                    let store = RedbStore::open(&folder, &identity).map_err(kept)?;
                    return self.start(store, &identity);
                }
            }
        }
        let mut pause = Duration::from_millis(100);
        loop {
            if let Some((member, incarnation)) = self.told()
                && self.claim(member).await
            {
                let identity = self.identity(member, incarnation);
                let store = RedbStore::create(&folder, &identity).map_err(kept)?;
                return self.start(store, &identity);
            }
            match self.found(&folder).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(FoundError::Registry(error)) => {
                    tracing::debug!(%error, "the registry was not asked for the group");
                }
                Err(FoundError::Agent(error)) => return Err(error),
            }
            tokio::select! {
                () = self.stop.cancelled() => return Ok(()),
                _ = self.orders.changed() => {}
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(Duration::from_secs(5));
        }
    }

    /// The group's present life, if the registry knows a newer one than this.
    async fn newer_life(&self, known: Incarnation) -> Option<Incarnation> {
        newer_life(&self.shared, known).await
    }

    /// The log of a life that is over: kept beside, for people, and never opened again.
    fn set_aside(
        &self,
        folder: &std::path::Path,
        identity: &StoreIdentity,
        incarnation: Incarnation,
    ) -> Result<(), AgentError> {
        let aside = folder.with_file_name(format!("member.old-{}", identity.incarnation));
        tracing::warn!(%incarnation, aside = %aside.display(), "the group lives anew; the old log is set aside");
        let fail = |source| AgentError::File { path: folder.to_owned(), what: "set aside", source };
        std::fs::rename(folder, aside).map_err(fail)?;
        std::fs::create_dir_all(folder).map_err(fail)
    }

    fn identity(&self, member: MemberId, incarnation: Incarnation) -> StoreIdentity {
        StoreIdentity {
            group: self.shared.group.to_string(),
            incarnation: incarnation.0,
            raft_id: RaftId(member.0),
        }
    }

    /// The member that the orders name.
    fn told(&mut self) -> Option<(MemberId, Incarnation)> {
        let received = self.orders.borrow_and_update().clone()?;
        Some((received.orders.member.as_ref()?.member, received.orders.incarnation))
    }

    /// Asks the leader whether the number was never used: an empty disk must not vote for one
    /// that promised something.
    async fn claim(&self, member: MemberId) -> bool {
        let request = ClaimMemberRequest {
            version: CONTROL_VERSION,
            group: self.shared.group.clone(),
            member,
        };
        for known in self.shared.members() {
            if known.server == *self.shared.server() {
                continue;
            }
            let call = Call::post(CLAIM_MEMBER, &request).deadline(Duration::from_secs(2));
            let target = self.shared.target(&known.server, &known.address);
            match self.shared.client.call_json::<ClaimMemberAnswer>(&target, call).await {
                Ok(answer) => return answer.granted,
                Err(error) => tracing::debug!(%error, "a member was not claimed here"),
            }
        }
        false
    }

    /// Founds the group, if the registry names this server as its first.
    async fn found(&self, folder: &std::path::Path) -> Result<bool, FoundError> {
        let registry = &*self.shared.registry;
        let (group, server) = (&self.shared.group, self.shared.server());
        let bootstrap =
            typed::bootstrap_group(registry, group, server).await.map_err(FoundError::Registry)?;
        if bootstrap.first_server != *server {
            return Ok(false);
        }
        // A group that has lived has members: this server lost its disk, and joins anew.
        let members = typed::read_members(registry, group).await.map_err(FoundError::Registry)?;
        if members.is_some_and(|members| members.stamp.incarnation >= bootstrap.incarnation) {
            return Ok(false);
        }
        let incarnation = bootstrap.incarnation;
        let mut state = State::new(group.clone(), incarnation);
        let config = &self.shared.config;
        let firsts = [
            Body::SetUp { labels: self.joined.labels.clone(), platform: config.platform.clone() },
            Body::AddServer {
                server: server.clone(),
                address: advertised(config),
                rack: config.rack.clone(),
            },
            Body::AllocateMember { server: server.clone() },
        ];
        for body in firsts {
            let command = Command {
                version: COMMAND_VERSION,
                incarnation,
                actor: format!("agent {server}"),
                request: None,
                body,
            };
            state.apply(&command).expect("an empty state takes its first server");
        }
        let member = MemberId(1);
        let identity = self.identity(member, incarnation);
        let broken = |error: String| FoundError::Agent(AgentError::Kept(error));
        let mut store =
            RedbStore::create(folder, &identity).map_err(|error| broken(error.to_string()))?;
        let data = serde_json::to_vec(&state).expect("a state has text keys only");
        let founding = Config::new(group.as_str(), incarnation.0, RaftId(member.0));
        Node::bootstrap(&mut store, &founding, [RaftId(member.0)], data)
            .map_err(|error| broken(error.to_string()))?;
        tracing::info!(%group, %incarnation, "this server founds the group");
        self.start(store, &identity).map_err(FoundError::Agent)?;
        Ok(true)
    }

    /// Starts the thread, its connections and the leader's duties.
    fn start(&self, store: RedbStore, identity: &StoreIdentity) -> Result<(), AgentError> {
        let shared = &self.shared;
        let incarnation = Incarnation(identity.incarnation);
        let mut config =
            Config::new(identity.group.clone(), identity.incarnation, identity.raft_id);
        config.boot_epoch = self.boot_epoch;
        let seed = blake3::hash(format!("{}/{}", shared.server(), std::process::id()).as_bytes());
        config.seed = u64::from_le_bytes(seed.as_bytes()[..8].try_into().expect("32 bytes"));
        let node = Node::open(store, config).map_err(MemberError::Node)?;
        let state = State::new(shared.group.clone(), incarnation);
        let (inputs, queue) = Inputs::queue();
        let first = View {
            state: Arc::new(state.clone()),
            raft: node.status(),
            waiting: Vec::new(),
            registry: None,
            refusals: Vec::new(),
            killed: shared.kill.on(),
        };
        let (view_sender, view) = watch::channel(Arc::new(first));
        shared.book.learn(&self.joined.members);
        let net = Net {
            group: shared.group.clone(),
            incarnation,
            server: shared.server().clone(),
            boot_epoch: self.boot_epoch,
            client: shared.client.clone(),
            book: Arc::clone(&shared.book),
            inputs: inputs.clone(),
            stop: self.stop.clone(),
        };
        let senders = std::sync::Mutex::new(Senders::new(net, tokio::runtime::Handle::current()));
        let metrics = Arc::clone(&shared.metrics);
        let outputs = Outputs {
            send: Box::new(move |envelope| {
                senders.lock().unwrap_or_else(std::sync::PoisonError::into_inner).send(&envelope);
            }),
            view: view_sender,
            events: Box::new(move |state: &State, event: &Event| tell(state, event, &metrics)),
        };
        let (thread_ends, thread_ended) = watch::channel(false);
        let handle = MemberHandle {
            member: MemberId(identity.raft_id.0),
            incarnation,
            inputs,
            view: view.clone(),
            ended: thread_ended,
        };
        let member = Member::new(
            shared.server().clone(),
            node,
            state,
            shared.kill.on(),
            Arc::clone(&shared.contacts),
            outputs,
        );
        let ended = self.ended.clone();
        let thread_ends = SetAtEnd(thread_ends);
        std::thread::Builder::new()
            .name("member".into())
            .spawn(move || {
                let _thread_ends = thread_ends;
                // A broken invariant panics: the replica stops, and so does the agent, loudly.
                let run = std::panic::AssertUnwindSafe(move || member.run(&queue));
                match std::panic::catch_unwind(run) {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => {
                        let _ = ended.blocking_send(AgentError::Member(error));
                    }
                    Err(_) => {
                        let _ = ended.blocking_send(AgentError::Panicked("member"));
                    }
                }
            })
            .map_err(|source| AgentError::File {
                path: PathBuf::from("/proc/self/task"),
                what: "given another thread",
                source,
            })?;
        duties::spawn(shared, &handle, self.repository.as_ref(), &self.stop);
        tokio::spawn(learn(Arc::clone(shared), view, self.stop.clone()));
        tokio::spawn(watch_life(
            Arc::clone(shared),
            handle.clone(),
            self.orders.clone(),
            self.ended.clone(),
            self.stop.clone(),
        ));
        shared.member.send_replace(Some(handle));
        Ok(())
    }
}

/// Says that the thread is over when it is dropped, as its last act.
struct SetAtEnd(watch::Sender<bool>);

impl Drop for SetAtEnd {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

async fn newer_life(shared: &Shared, known: Incarnation) -> Option<Incarnation> {
    let asked = typed::read_bootstrap(&*shared.registry, &shared.group);
    match tokio::time::timeout(Duration::from_secs(2), asked).await {
        Ok(Ok(Some(bootstrap))) if bootstrap.incarnation > known => Some(bootstrap.incarnation),
        Ok(Ok(_)) | Err(_) => None,
        Ok(Err(error)) => {
            tracing::debug!(%error, "the registry was not asked for the group's life");
            None
        }
    }
}

/// A member that has no leader for long asks whether the group was given another life.
async fn watch_life(
    shared: Arc<Shared>,
    handle: MemberHandle,
    orders: watch::Receiver<Option<Arc<Received>>>,
    ended: mpsc::Sender<AgentError>,
    stop: CancellationToken,
) {
    for look in 1_u64.. {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LIFE_EVERY) => {}
        }
        // A server that left and came back carries another member: orders are read through the
        // leader, so what they say is committed.
        let other = orders.borrow().as_ref().is_some_and(|received| {
            let told = received.orders.member.as_ref().map(|order| order.member);
            received.fresh(cohort_host::boot_time_ms())
                && received.orders.incarnation == handle.incarnation
                // None: its number is over, and it carries no member until it is given another.
                && told.is_none_or(|member| member > handle.member)
        });
        if other {
            let _ = ended.send(AgentError::OtherMember(handle.member)).await;
            return;
        }
        // One that has a leader asks as well, but seldom: the old life may still have a majority.
        if handle.view.borrow().raft.leader.is_some() && look % LED_LOOKS != 0 {
            continue;
        }
        if let Some(incarnation) = newer_life(&shared, handle.incarnation).await {
            let _ = ended.send(AgentError::NewLife(incarnation)).await;
            return;
        }
    }
}

enum FoundError {
    Registry(cohort_registry::RegistryError),
    Agent(AgentError),
}

/// Keeps addresses and gauges up to date with what is committed.
async fn learn(shared: Arc<Shared>, mut view: watch::Receiver<Arc<View>>, stop: CancellationToken) {
    loop {
        {
            let now = Arc::clone(&view.borrow_and_update());
            shared.learn_members(&now.state.member_addresses());
            shared.contacts.retain(|server| now.state.servers.contains_key(server));
            let metrics = &shared.metrics;
            metrics.set("cohort_raft_term", &[], now.raft.term.0 as f64);
            metrics.set("cohort_raft_commit_index", &[], now.raft.commit.0 as f64);
            metrics.set("cohort_raft_is_leader", &[], f64::from(u8::from(now.raft.is_leader())));
            let dropped = now.raft.dropped;
            for (reason, count) in [
                ("stranger", dropped.strangers),
                ("late", dropped.late),
                ("malformed", dropped.malformed),
            ] {
                metrics.set("cohort_raft_dropped_total", &[("reason", reason)], count as f64);
            }
            metrics.clear("cohort_rollout_info");
            for (id, app) in &now.state.apps {
                let release = app.phase.rollout().map_or("", |r| r.release.version.as_str());
                let labels = [
                    ("app", id.as_str()),
                    ("state", app.phase.name().as_str()),
                    ("release", release),
                ];
                metrics.set("cohort_rollout_info", &labels, 1.0);
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = view.changed() => if changed.is_err() { return },
        }
    }
}

/// Says what happened, once per entry.
fn tell(state: &State, event: &Event, metrics: &crate::metrics::Metrics) {
    match event {
        Event::PhaseChanged { app, from, to, by } => {
            tracing::info!(%app, %from, %to, by, "state");
            let ended = state.apps.get(app).and_then(|app| app.history.back());
            let over = matches!(
                to,
                cohort_core::phase::PhaseName::Running | cohort_core::phase::PhaseName::Held
            );
            if let Some(entry) = ended.filter(|_| over) {
                let outcome = match entry.ending {
                    cohort_core::state::Ending::Completed => "completed",
                    cohort_core::state::Ending::RolledBack => "rolled-back",
                    cohort_core::state::Ending::HeldInPlace => "held-in-place",
                    cohort_core::state::Ending::Superseded => "superseded",
                    cohort_core::state::Ending::Adopted => "adopted",
                };
                let labels = [("app", app.as_str()), ("outcome", outcome)];
                metrics.add("cohort_rollouts_total", &labels, 1.0);
                let seconds = entry.ended.since(entry.started) as f64 / 1000.0;
                metrics.add("cohort_rollout_duration_seconds_sum", &labels, seconds);
                metrics.add("cohort_rollout_duration_seconds_count", &labels, 1.0);
            }
        }
        Event::Granted { app, server, generation, purpose } => {
            tracing::info!(%app, %server, %generation, ?purpose, "granted");
        }
        Event::ServerFailed { app, server, reason } => {
            tracing::warn!(%app, %server, reason, "server failed");
        }
        Event::ServerLost { app, server, reason } => {
            tracing::warn!(%app, %server, reason, "server lost");
        }
        Event::ServerDone { app, server } => tracing::info!(%app, %server, "server done"),
        Event::ReportIgnored { server, sequence } => {
            tracing::debug!(%server, sequence, "report ignored");
        }
        Event::RequestRepeated { .. } => {}
        Event::ServersChanged => tracing::info!(servers = state.servers.len(), "servers changed"),
    }
}
