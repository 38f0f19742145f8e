//! How this server comes to carry the group's log, and how it starts to.
//!
//! The decisions are in [`cohort_server::membership`]; here are the disk, the registry and the
//! calls to other members.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use cohort_base::retry::Schedule;
use cohort_base::{FileError, OnPath as _, chain, durable};
use cohort_consensus::{Config, Envelope, Node, RaftId};
use cohort_core::ids::{Incarnation, MemberId};
use cohort_core::placement::Carriers;
use cohort_core::state::Process;
use cohort_host::boot_time_ms;
use cohort_identity::UnixTime;
use cohort_registry::{RegistryError, typed};
use cohort_server::asking::Received;
use cohort_server::leading::Placer;
use cohort_server::member::Member;
use cohort_server::membership::{
    FIRST_MEMBER, Found, Founder, LOOK_EVERY_MS, asks_for_incarnation, carries_another, found,
    founding_state, founds,
};
use cohort_store::{Identity as StoreIdentity, LogStore as _, RedbStore};
use cohort_wire::agent::{CLAIM_MEMBER, ClaimMemberAnswer, ToGroup};
use cohort_wire::http::Call;
use tokio::sync::watch;

use crate::attesting::Attesting;
use crate::complaint::Complaint;
use crate::contacts::monotonic_ms;
use crate::duties;
use crate::error::AgentError;
use crate::join::{Joined, advertised};
use crate::member::{Inputs, MemberError, Notes, Outputs, Shell, View};
use crate::metrics::{Dropped, Metrics, Rollout, TimedStore};
use crate::net::{Net, Senders};
use crate::shared::{MemberHandle, Shared};
use crate::tasks::Tasks;
use crate::whereabouts;

/// The directory of the group's log, in the data directory.
pub(crate) const FOLDER: &str = "member";
/// How long the registry may take to name the group's incarnation.
const INCARNATION_DEADLINE: Duration = Duration::from_secs(2);
/// How long it may take to tell the registry, with what other members attest.
const TELL_DEADLINE: Duration = Duration::from_secs(6);
/// How long a member may take to answer a claim.
const CLAIM_DEADLINE: Duration = Duration::from_secs(2);
/// Pauses while this server carries no member, between looks at the registry.
const LOOK: Schedule = Schedule::new(Duration::from_millis(200), Duration::from_secs(5));

/// What starting a member needs.
pub(crate) struct Starter {
    pub shared: Arc<Shared>,
    pub joined: Joined,
    pub orders: watch::Receiver<Option<Arc<Received>>>,
}

impl Starter {
    /// Starts the member that this server carries, founds the group, or waits to be told to carry
    /// a member.
    pub(crate) async fn run(mut self) -> Result<(), AgentError> {
        let data_dir = self.shared.config.data_dir.clone();
        let folder = data_dir.join(FOLDER);
        let kept = |error: cohort_store::StoreError| AgentError::kept("group's log")(error);
        if let Some(identity) = RedbStore::identity_in(&folder).map_err(kept)? {
            let incarnation = Incarnation(identity.incarnation);
            let present = present_incarnation(&self.shared).await;
            match found(&identity.group, incarnation, &self.shared.group, present) {
                Found::Open => {
                    let store = RedbStore::open(&folder, &identity).map_err(kept)?;
                    // Only its founder creates the first member: a crash came before the first
                    // state.
                    let unfounded =
                        identity.raft_id.0 == FIRST_MEMBER.0 && store.image().snapshot().is_none();
                    if unfounded {
                        return self.found(store, &identity);
                    }
                    return self.start(store, &identity);
                }
                Found::OtherGroup => {
                    return Err(AgentError::kept("group's log")(format!(
                        "{} belongs to the group {}, and this server to {}; move it aside",
                        folder.display(),
                        identity.group,
                        self.shared.group
                    )));
                }
                Found::SetAside => retire(&data_dir, incarnation, MemberId(identity.raft_id.0))?,
            }
        }
        durable::create_folders(&folder).on_path("create", &folder)?;
        let mut pauses = LOOK.pauses();
        let (mut refused, mut unclaimed) = (Complaint::default(), Complaint::default());
        loop {
            if let Some((member, incarnation)) = self.ordered()
                && self.claim(member, &mut unclaimed).await
            {
                let identity = self.identity(member, incarnation);
                let store = RedbStore::create(&folder, &identity).map_err(kept)?;
                return self.start(store, &identity);
            }
            match self.may_found().await {
                Ok(Some(incarnation)) => {
                    let identity = self.identity(FIRST_MEMBER, incarnation);
                    let store = RedbStore::create(&folder, &identity).map_err(kept)?;
                    return self.found(store, &identity);
                }
                Ok(None) => {}
                Err(error @ RegistryError::Unavailable { .. }) => {
                    tracing::debug!(error = chain(&error), "the hub did not name the founder");
                }
                Err(error) => refused.of("the hub refuses to let this group start", &error),
            }
            tokio::select! {
                _ = self.orders.changed() => {}
                () = tokio::time::sleep(pauses.next_pause()) => {}
            }
        }
    }

    fn identity(&self, member: MemberId, incarnation: Incarnation) -> StoreIdentity {
        StoreIdentity {
            group: self.shared.group.to_string(),
            incarnation: incarnation.0,
            raft_id: RaftId(member.0),
        }
    }

    /// The member that the orders name.
    fn ordered(&mut self) -> Option<(MemberId, Incarnation)> {
        let received = self.orders.borrow_and_update().clone()?;
        Some((received.orders.member.as_ref()?.member, received.orders.incarnation))
    }

    /// Asks the leader whether the number was never used: an empty disk must not vote under a
    /// number that has promised something.
    async fn claim(&self, member: MemberId, unclaimed: &mut Complaint) -> bool {
        let message = ToGroup::new(&self.shared.group, member);
        let members = self.shared.members();
        // All but the leader refuse.
        let patience = 2 * members.len();
        for known in members {
            if known.server == *self.shared.server() {
                continue;
            }
            let call = Call::post(CLAIM_MEMBER, &message).deadline(CLAIM_DEADLINE);
            let answer = self.shared.call_member(&known.server, &known.address, call).await;
            match answer {
                Ok(ClaimMemberAnswer { granted }) => return granted,
                Err(error) => unclaimed.after(
                    patience,
                    "no leader says whether this server may carry the log",
                    &error,
                ),
            }
        }
        false
    }

    /// The incarnation in which this server founds the group, if it does.
    async fn may_found(&self) -> Result<Option<Incarnation>, RegistryError> {
        let registry = &*self.shared.registry;
        let (group, server) = (&self.shared.group, self.shared.server());
        let bootstrap = if self.is_new_group()? {
            Some(typed::bootstrap_group(registry, group, server).await?)
        } else {
            typed::read_bootstrap(registry, group).await?
        };
        // What a member wrote again was bootstrapped long ago.
        let bootstrap = bootstrap.filter(|bootstrap| !bootstrap.restored);
        let Some(bootstrap) = bootstrap.filter(|it| it.first_server == *server) else {
            return Ok(None);
        };
        let members = typed::read_members(registry, group).await?;
        let founded = members.map(|members| members.stamp.incarnation);
        let founds = founds(server, (bootstrap.incarnation, &bootstrap.first_server), founded);
        Ok(founds.then_some(bootstrap.incarnation))
    }

    /// Whether, as far as this server knows, the group may never have been founded. A hub without a
    /// record of it may have lost that; a server that has worked for it knows better.
    fn is_new_group(&self) -> Result<bool, RegistryError> {
        let unreadable = |error: FileError| RegistryError::Unavailable { reason: chain(&error) };
        Ok(self.joined.members.is_empty()
            && self.shared.orders.borrow().is_none()
            && self.shared.apps_on_disk().map_err(unreadable)?.is_empty())
    }

    /// Writes the group's first state to an empty log, and starts its first member.
    fn found(&self, mut store: RedbStore, identity: &StoreIdentity) -> Result<(), AgentError> {
        let incarnation = Incarnation(identity.incarnation);
        let (config, group) = (&self.shared.config, self.shared.group.clone());
        let founder = Founder {
            server: self.shared.server().clone(),
            address: advertised(config),
            rack: config.rack.clone(),
            process: Process { life: self.shared.life, host: String::new() },
            labels: self.joined.labels.clone(),
            platform: config.platform.clone(),
        };
        let state = founding_state(group.clone(), incarnation, founder);
        let data = serde_json::to_vec(&state).expect("a state has text keys only");
        let founding = Config::new(group.as_str(), incarnation.0, identity.raft_id);
        Node::bootstrap(&mut store, &founding, [identity.raft_id], data)
            .map_err(MemberError::Node)?;
        tracing::info!(%group, %incarnation, "founding the group");
        self.start(store, identity)
    }

    /// Starts the thread, its connections and the leader's duties.
    fn start(&self, store: RedbStore, identity: &StoreIdentity) -> Result<(), AgentError> {
        let shared = &self.shared;
        let incarnation = Incarnation(identity.incarnation);
        let mut config =
            Config::new(identity.group.clone(), identity.incarnation, identity.raft_id);
        (config.boot_epoch, config.life) = (shared.boot_epoch.0, shared.life);
        config.unix_s = UnixTime::now().as_secs();
        config.set_timing(shared.config.timing()?);
        let seed = blake3::hash(format!("{}/{}", shared.server(), std::process::id()).as_bytes());
        config.seed = u64::from_le_bytes(seed.as_bytes()[..8].try_into().expect("32 bytes"));
        let (server, group) = (shared.server().clone(), shared.group.clone());
        let seconds = shared.metrics.log_write_seconds.clone();
        let store = TimedStore { store, seconds };
        let mut member =
            Member::open(monotonic_ms(), server, group, store, config, shared.kill.on())?;
        member.place_by(Placer {
            replace_after_ms: shared.config.replace_after.ms,
            carriers: Carriers { voters: shared.config.voters, standbys: shared.config.standbys },
            ..Placer::default()
        });
        let raft = member.view().raft;
        shared.events.begin(incarnation, raft.applied.0, raft.log.1.0);
        let (inputs, queue) = Inputs::queue();
        let (view_sender, view) = watch::channel(Arc::new(member.view()));
        shared.book.lock().learn(&self.joined.members);
        let outputs = Outputs {
            send: self.sender(incarnation, &inputs),
            view: view_sender,
            notes: Notes {
                metrics: Arc::clone(&shared.metrics),
                events: Arc::clone(&shared.events),
            },
        };
        let shell = Shell::new(member, Arc::clone(&shared.contacts), outputs);
        let (thread_ends, thread_ended) = watch::channel(false);
        let own = MemberId(identity.raft_id.0);
        let run = move || shell.run(&queue).map_err(|error| ended_by(error, incarnation, own));
        run_thread(shared.tasks.clone(), thread_ends, run)?;
        let handle = MemberHandle {
            member: MemberId(identity.raft_id.0),
            incarnation,
            inputs,
            view: view.clone(),
            ended: thread_ended,
        };
        duties::spawn(shared, &handle);
        shared.tasks.spawn("watch of the state", learn(Arc::clone(shared), view));
        let watch = watch_retirement(Arc::clone(shared), handle.clone());
        shared.tasks.spawn_or_end("watch of the membership", watch);
        shared.member.send_replace(Some(handle));
        Ok(())
    }

    /// Hands messages to the peers' connections.
    fn sender(
        &self,
        incarnation: Incarnation,
        inputs: &Inputs,
    ) -> Box<dyn FnMut(&Envelope) + Send> {
        let net = Net { shared: Arc::clone(&self.shared), incarnation, inputs: inputs.clone() };
        let mut senders = Senders::new(net, tokio::runtime::Handle::current());
        Box::new(move |envelope| senders.send(envelope))
    }
}

/// Moves the log of a member out of the way, for people; it is never opened again. Its number is
/// never used again, and what its log had, the group has.
pub(crate) fn retire(
    data_dir: &Path,
    incarnation: Incarnation,
    member: MemberId,
) -> Result<(), FileError> {
    let folder = data_dir.join(FOLDER);
    let name = format!("{FOLDER}.retired-{incarnation}-{member}");
    let mut aside = data_dir.join(&name);
    // An operator may have put the same log back: both are kept.
    let mut number = 1;
    while aside.symlink_metadata().is_ok() {
        number += 1;
        aside = data_dir.join(format!("{name}.{number}"));
    }
    tracing::warn!(%incarnation, %member, aside = %aside.display(), "member retired; log kept");
    durable::rename(&folder, &aside).on_path("set aside", &folder)
}

/// What the end of a member means for its agent.
fn ended_by(error: MemberError, incarnation: Incarnation, member: MemberId) -> AgentError {
    match error {
        MemberError::Node(ref cause) if cause.is_of_an_old_log() => {
            AgentError::WentBack { incarnation, member, source: error }
        }
        error => AgentError::Member(error),
    }
}

/// Runs a member on its thread. Its end by an error or a panic ends the agent; `ended` is set as
/// the thread's last act.
fn run_thread(
    tasks: Tasks,
    ended: watch::Sender<bool>,
    run: impl FnOnce() -> Result<(), AgentError> + Send + 'static,
) -> Result<(), AgentError> {
    let at_end = SetAtEnd(ended);
    let thread = move || {
        let _at_end = at_end;
        // A broken invariant panics: the replica stops, and so does the agent, loudly.
        let error = match std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)) {
            Ok(Ok(())) => return,
            Ok(Err(error)) => error,
            Err(_) => AgentError::Panicked("member"),
        };
        tasks.end(error);
    };
    std::thread::Builder::new()
        .name("member".into())
        .spawn(thread)
        .map(drop)
        .map_err(AgentError::Thread)
}

/// Says that the thread is over when it is dropped, as its last act.
struct SetAtEnd(watch::Sender<bool>);

impl Drop for SetAtEnd {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

/// The group's incarnation, as the registry has it; none while it does not answer, or if a member
/// wrote it.
async fn present_incarnation(shared: &Shared) -> Option<Incarnation> {
    let asked = typed::read_bootstrap(&*shared.registry, &shared.group);
    named(INCARNATION_DEADLINE, asked)
        .await
        .flatten()
        .filter(|it| !it.restored)
        .map(|it| it.incarnation)
}

/// Tells a registry that has lost the group's incarnation, or has an earlier one.
async fn tell_incarnation(shared: &Shared, handle: &MemberHandle) {
    let attesting = Attesting { shared, handle };
    let (own, server) = (handle.incarnation, shared.server());
    let told = typed::restore_bootstrap(&attesting, &shared.group, own, server);
    if named(TELL_DEADLINE, told).await == Some(true) {
        tracing::warn!(incarnation = %own, "the hub had lost the group's incarnation");
    }
}

/// The registry's answer about the incarnation, if it comes in time.
async fn named<T>(
    deadline: Duration,
    asked: impl Future<Output = Result<T, RegistryError>>,
) -> Option<T> {
    match tokio::time::timeout(deadline, asked).await {
        Ok(Ok(answer)) => Some(answer),
        Ok(Err(error)) => {
            let error = chain(&error);
            tracing::debug!(error, "the registry did not name the group's incarnation");
            None
        }
        Err(_) => None,
    }
}

/// Ends the agent when the group was recovered, or gave this server another member.
async fn watch_retirement(shared: Arc<Shared>, handle: MemberHandle) -> Result<(), AgentError> {
    let MemberHandle { incarnation, member, ref view, .. } = handle;
    let mut look = 0;
    loop {
        look += 1;
        tokio::time::sleep(Duration::from_millis(LOOK_EVERY_MS)).await;
        let orders = shared.orders.borrow().clone();
        let mut retired = orders.is_some_and(|received| {
            carries_another(&received, boot_time_ms(), incarnation, member)
        });
        let has_leader = view.borrow().raft.leader.is_some();
        if !has_leader {
            whereabouts::find_members(&shared, false).await;
        }
        if !retired && asks_for_incarnation(look, has_leader) {
            let present = present_incarnation(&shared).await;
            retired = present.is_some_and(|present| present > incarnation);
            if present.is_none_or(|present| present < incarnation) {
                tell_incarnation(&shared, &handle).await;
            }
        }
        if retired {
            return Err(AgentError::Retired { incarnation, member });
        }
    }
}

/// Keeps addresses and gauges up to date with what is committed.
async fn learn(shared: Arc<Shared>, mut view: watch::Receiver<Arc<View>>) {
    loop {
        {
            let now = Arc::clone(&view.borrow_and_update());
            {
                let mut book = shared.book.lock();
                book.learn(&now.state.member_addresses());
                book.voters = now.voters();
            }
            shared.contacts.retain(|server| now.state.servers.contains_key(server));
            measure(&shared.metrics, &now);
        }
        if view.changed().await.is_err() {
            return;
        }
    }
}

fn measure(metrics: &Metrics, now: &View) {
    metrics.raft_term.set(now.raft.term.0.cast_signed());
    metrics.raft_commit_index.set(now.raft.commit.0.cast_signed());
    metrics.raft_is_leader.set(now.raft.is_leader().into());
    let dropped = now.raft.dropped;
    for (reason, count) in [
        ("stranger", dropped.strangers),
        ("late", dropped.late),
        ("malformed", dropped.malformed),
        ("implausible", dropped.implausible),
    ] {
        let counter = metrics.raft_dropped.get_or_create(&Dropped { reason });
        counter.inner().store(count, Ordering::Relaxed);
    }
    metrics.rollout.clear();
    for (id, app) in &now.state.apps {
        let release = app.phase.rollout().map_or("", |r| r.release.version.as_str());
        let labels = Rollout {
            app: id.to_string(),
            state: app.phase.name().as_str().to_owned(),
            release: release.to_owned(),
        };
        metrics.rollout.get_or_create(&labels).set(1);
    }
}

#[cfg(test)]
#[path = "membership_test.rs"]
mod membership_test;
