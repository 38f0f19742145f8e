//! State shared by the agent's tasks, and calls to the member and between members.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cohort_artifact::TrustedRepository;
use cohort_base::{FileError, OnPath as _, chain};
use cohort_core::command::{Body, COMMAND_VERSION, Command};
use cohort_core::doing::Doing;
use cohort_core::ids::{
    AppId, BootEpoch, Digest, GroupId, Incarnation, MemberId, RequestId, ServerId,
};
use cohort_core::machine::{DiskSpace, Machine};
use cohort_core::orders::{MemberAddress, Source};
use cohort_distribute::{Downloads, SharedTracker};
use cohort_host::{CheckContext, Lack};
use cohort_identity::{Alpn, Peer, Role};
use cohort_registry::Registry;
use cohort_registry::records::ServerRecord;
use cohort_server::addresses::AddressBook;
use cohort_server::answers::{COMMAND_MS_MAX, Committing, Next};
use cohort_server::asking::Received;
use cohort_server::health_pace::HealthPace;
use cohort_server::member::{Proposed, READ_MS_MAX};
use cohort_server::membership::OwnLog;
use cohort_store::RedbStore;
use cohort_wire::agent::{
    CONTROL_VERSION, CommandAnswer, FORWARD, Forwarded, SignedSubmission, Submission, ToGroup,
};
use cohort_wire::http::{ApiError, Call, CallError, Client, Target};
use cohort_wire::kill::SignedKill;
use cohort_wire::tls::IdentitySlot;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, Semaphore, watch};

use crate::complaint::Complaints;
use crate::config::AgentConfig;
use crate::contacts::{SharedContacts, monotonic_ms};
use crate::events::EventLog;
use crate::killswitch::KillSwitch;
use crate::member::{Inputs, View};
use crate::membership::FOLDER as MEMBER_FOLDER;
use crate::metrics::Metrics;
use crate::probe::Readiness;
use crate::proofs::Proofs;
use crate::submitted::{Follows, Submitted};
use crate::tasks::Tasks;

/// How long a linearizable read may take, also when the member itself hangs on its disk.
const READ_DEADLINE: Duration = Duration::from_millis(READ_MS_MAX + 100);

/// Kinds of the error of a leader that cannot write to its log: it was not proposed, and whoever
/// asked has to mend the disk first.
const NO_SPACE: &str = "no_space";
const READ_ONLY: &str = "read_only";

/// A handle on the member that this server carries.
#[derive(Debug, Clone)]
pub(crate) struct MemberHandle {
    pub member: MemberId,
    pub incarnation: Incarnation,
    pub inputs: Inputs,
    pub view: watch::Receiver<Arc<View>>,
    /// Set once the member's thread has ended and its log is closed.
    pub ended: watch::Receiver<bool>,
}

impl MemberHandle {
    /// What the member last published. A snapshot: holding it blocks nobody, while a borrow of the
    /// channel would keep the member from publishing the next.
    pub(crate) fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.borrow())
    }
}

/// Why a group that answers has no orders for this agent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It has not introduced itself yet, or its server is not in the group.
    NoOrders,
    /// Another machine runs as its server, on this host.
    Elsewhere { host: String },
}

/// The digests on both sides when revocations were exchanged, and when they may be again.
pub(crate) type Exchanged = ((u64, u64), Instant);

/// State shared by the agent's tasks.
pub(crate) struct Shared {
    pub config: AgentConfig,
    /// What the hub should know of this server.
    pub record: ServerRecord,
    pub group: GroupId,
    /// Which start of this server's agent this is.
    pub boot_epoch: BootEpoch,
    /// Identifies this process among all that ever ran as this server, copies included.
    pub life: u64,
    /// The group answers, and has no orders for this agent: why.
    pub refusal: Mutex<Option<Refusal>>,
    pub complaints: Complaints,
    /// The policies in the group's log that an operator signed, as far as they were verified here.
    pub proofs: Proofs,
    /// The group says that this server's clock differs from the others'.
    pub clock_off: AtomicBool,
    pub tasks: Tasks,
    pub identity: Arc<IdentitySlot>,
    /// With which members revocations were exchanged: by which digests, and when.
    pub exchanged: Mutex<BTreeMap<ServerId, Exchanged>>,
    pub client: Client,
    pub registry: Arc<dyn Registry>,
    pub kill: Arc<KillSwitch>,
    pub contacts: Arc<SharedContacts>,
    /// What this server's member accepts of each server's health.
    pub health_pace: Mutex<HealthPace>,
    /// Where the group's members are.
    pub book: Mutex<AddressBook>,
    pub metrics: Arc<Metrics>,
    pub member: watch::Sender<Option<MemberHandle>>,
    pub hub: Vec<Target>,
    /// The repository, verified with this server's trusted root.
    pub repository: Option<Arc<TrustedRepository>>,
    /// Plans who sends which bytes to whom, while this server leads.
    pub tracker: Arc<SharedTracker>,
    pub downloads: Arc<Downloads>,
    pub readiness: Readiness,
    /// The orders in force; none until the group has spoken.
    pub orders: watch::Sender<Option<Arc<Received>>>,
    pub doing: Mutex<BTreeMap<AppId, Doing>>,
    /// The space left for the agent.
    pub disk: watch::Sender<DiskSpace>,
    /// A step started or ended since the group was told the last one.
    pub step_changed: Notify,
    /// The leader, as other members last named it.
    pub leader: Mutex<Option<Source>>,
    /// Turns to read logs.
    pub log_readers: Semaphore,
    /// What happened in the group, while this server carries a member.
    pub events: Arc<EventLog>,
    /// Turns to wait for that.
    pub event_readers: Semaphore,
    /// Turns to try checks.
    pub checkers: Semaphore,
    /// What checks need to know, per app of which a release runs here.
    pub check_contexts: Mutex<BTreeMap<AppId, CheckContext>>,
    /// When the metrics of services were read last.
    pub looked_at_services: tokio::sync::Mutex<Option<Instant>>,
    /// What this machine lacks to confine releases, once that is known.
    pub lacking: OnceLock<Vec<Lack>>,
    /// Artifacts that each app wants kept; an app is missing until it has said so.
    pub kept: Mutex<BTreeMap<AppId, BTreeSet<Digest>>>,
    /// Apps of which nothing is left here, until the runner has heard of it.
    pub retired: Mutex<BTreeSet<AppId>>,
}

impl Shared {
    pub(crate) fn server(&self) -> &ServerId {
        &self.config.server
    }

    /// What this server says of its machine.
    pub(crate) fn machine(&self) -> Machine {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let unix_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let (disk, stopped) = (*self.disk.borrow(), self.kill.is_stopped_by_file());
        Machine { unix_ms, disk, vouched: self.own_log().vouched(), stopped }
    }

    /// This member is the leader, and cannot write to its log for long.
    pub(crate) fn no_space(&self) -> ApiError {
        let (server, group, folder) = (self.server(), &self.group, self.config.data_dir.display());
        let read_only = *self.disk.borrow() == DiskSpace::ReadOnly;
        let (kind, error, cure) = match read_only {
            true => (READ_ONLY, format!("{folder} of {server} is read-only"), "remount it"),
            false => (NO_SPACE, format!("no space left for {folder} of {server}"), "free space"),
        };
        ApiError::unavailable(kind, format!("{error}, the leader of {group}"))
            .hint(format!("{cure} on {server}, or: cohort group transfer-leader {group}"))
    }

    /// Records what this server does for an app; `None`: nothing.
    pub(crate) fn does(&self, app: &AppId, doing: Option<Doing>) {
        let mut board = self.doing.lock();
        let step = doing.as_ref().map(Doing::step);
        let before = match doing {
            Some(doing) => board.insert(app.clone(), doing),
            None => board.remove(app),
        };
        if before.as_ref().map(Doing::step) != step {
            self.step_changed.notify_one();
        }
    }

    pub(crate) fn handle(&self) -> Option<MemberHandle> {
        self.member.borrow().clone()
    }

    /// The group's log on this server's disk.
    pub(crate) fn own_log(&self) -> OwnLog {
        match self.handle() {
            Some(handle) => OwnLog::Open {
                incarnation: handle.incarnation,
                member: handle.member,
                proven: handle.view().raft.proven,
            },
            None if RedbStore::exists_in(&self.config.data_dir.join(MEMBER_FOLDER)) => {
                OwnLog::Closed
            }
            None => OwnLog::None,
        }
    }

    /// Whether the group answers, and does not take this agent for its server's.
    pub(crate) fn is_refused(&self) -> bool {
        self.refusal.lock().is_some()
    }

    /// The host of the machine that runs as this server, for which the group refuses this one.
    pub(crate) fn elsewhere(&self) -> Option<String> {
        match &*self.refusal.lock() {
            Some(Refusal::Elsewhere { host }) => Some(host.clone()),
            Some(Refusal::NoOrders) | None => None,
        }
    }

    /// A member answered whether the group has orders for this agent.
    pub(crate) fn has_orders(&self, has: bool) {
        let mut refusal = self.refusal.lock();
        if !has {
            refusal.get_or_insert(Refusal::NoOrders);
        } else if let Some(Refusal::Elsewhere { .. }) = refusal.take() {
            tracing::info!("the group accepts this agent again");
        }
    }

    /// A member said how far this server's clock is ahead of the others', in milliseconds; `None`
    /// if it cannot tell.
    pub(crate) fn clock_is(&self, ahead_ms: Option<i64>) {
        let Some(ahead_ms) = ahead_ms else { return };
        let off = ahead_ms != 0;
        if self.clock_off.swap(off, Ordering::Relaxed) == off {
            return;
        }
        if off {
            tracing::warn!(
                ahead_ms,
                "the clock of this server differs from the other servers': set it"
            );
        } else {
            tracing::info!("the clock of this server agrees with the other servers' again");
        }
    }

    /// The group refuses this agent because another machine runs as its server.
    pub(crate) fn runs_elsewhere(&self, host: &str) {
        let now = Some(Refusal::Elsewhere { host: host.to_owned() });
        let mut refusal = self.refusal.lock();
        if *refusal != now {
            *refusal = now;
            tracing::error!(
                server = %self.server(),
                host,
                "another machine runs as this server: the group refuses this one; if this one is a \
                 copy, stop its agent, empty its data_dir, and let it join under a name of its \
                 own; if it replaces the other one, stop that one's agent: the group accepts this \
                 one after 10 minutes of its silence",
            );
        }
    }

    /// The group's members, each at the address to try now.
    pub(crate) fn members(&self) -> Vec<MemberAddress> {
        self.book.lock().current().to_vec()
    }

    /// The server of a member, and the address to try now.
    pub(crate) fn whereabouts(&self, member: MemberId) -> Option<(ServerId, String)> {
        let book = self.book.lock();
        let (server, address) = book.of(member)?;
        Some((server.clone(), address.to_owned()))
    }

    /// The leader: as the member here knows it, else as another member named it.
    pub(crate) fn leader(&self) -> Option<Source> {
        if let Some(handle) = self.handle() {
            let view = handle.view();
            if let Some(server) = view.leader()
                && let Some(known) = view.state.servers.get(server)
            {
                return Some(Source { server: server.clone(), address: known.address.clone() });
            }
        }
        self.leader.lock().clone()
    }

    /// A member named the leader.
    pub(crate) fn learn_leader(&self, leader: Option<&ServerId>, members: &[MemberAddress]) {
        let found = leader.and_then(|leader| members.iter().find(|m| m.server == *leader));
        if let Some(found) = found {
            let source = Source { server: found.server.clone(), address: found.address.clone() };
            *self.leader.lock() = Some(source);
        }
    }

    /// An app says which artifacts must stay on disk.
    pub(crate) fn keep(&self, app: &AppId, artifacts: BTreeSet<Digest>) {
        self.kept.lock().insert(app.clone(), artifacts);
    }

    /// What all apps together want kept; none while an app on disk has not said so yet.
    pub(crate) fn keep_of_all(&self) -> Option<BTreeSet<Digest>> {
        let kept = self.kept.lock();
        let on_disk = self.apps_on_disk().ok()?;
        let said = !on_disk.is_empty() && on_disk.iter().all(|app| kept.contains_key(app));
        said.then(|| kept.values().flatten().cloned().collect())
    }

    /// Nothing of the app is left here. What the others want kept; none while one has not said so.
    pub(crate) fn retire(&self, app: &AppId) -> Option<BTreeSet<Digest>> {
        self.readiness.remove(app);
        self.check_contexts.lock().remove(app);
        self.retired.lock().insert(app.clone());
        self.kept.lock().remove(app);
        let was_last = self.apps_on_disk().is_ok_and(|apps| apps.is_empty());
        if was_last { Some(BTreeSet::new()) } else { self.keep_of_all() }
    }

    /// The apps that have a record here. Other files and directories next to them are ignored.
    pub(crate) fn apps_on_disk(&self) -> Result<BTreeSet<AppId>, FileError> {
        let folder = self.config.data_dir.join("apps");
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(BTreeSet::new()),
            entries => entries.on_path("read", &folder)?,
        };
        let mut apps = BTreeSet::new();
        for entry in entries {
            let entry = entry.on_path("read", &folder)?;
            let app = entry.file_name().to_str().and_then(|name| AppId::new(name).ok());
            apps.extend(app.filter(|_| entry.path().is_dir()));
        }
        Ok(apps)
    }

    /// The control port of a server's agent.
    pub(crate) fn target(&self, server: &ServerId, address: &str) -> Target {
        Target {
            address: address.to_owned(),
            peer: Peer::new(Role::Agent, server.as_str()).expect("a server id is a DNS label"),
            alpn: Alpn::Control,
        }
    }

    /// The member here, or the answer that there is none.
    pub(crate) fn need_member(&self) -> Result<MemberHandle, ApiError> {
        self.handle().ok_or_else(|| {
            ApiError::unavailable("no_member", "this server carries no member of the group")
                .hint(format!("ask one of the members: cohort group show {}", self.group))
        })
    }

    /// Latches kill registers of a peer, which has no use for an error.
    pub(crate) async fn latch(&self, registers: Vec<SignedKill>) {
        let _logged = self.kill.offer(registers).await;
    }

    /// Refuses messages of another version or for another group.
    pub(crate) fn same_group(&self, group: &GroupId, version: u32) -> Result<(), ApiError> {
        if version != CONTROL_VERSION {
            let error = format!("control message version {version} is not supported here");
            return Err(ApiError::bad_request(error).hint("use the version that the agents run"));
        }
        if *group != self.group {
            let error = format!("this server belongs to {}, not to {group}", self.group);
            return Err(ApiError::conflict(error).hint("cohort group list"));
        }
        Ok(())
    }

    /// Reads through the leader: after this, the view is at least as new as the question.
    pub(crate) async fn fresh(&self, handle: &MemberHandle) -> Result<Arc<View>, ApiError> {
        let answer = handle.inputs.read().ok_or_else(member_busy)?;
        match tokio::time::timeout(READ_DEADLINE, answer).await {
            Ok(Ok(true)) => Ok(handle.view()),
            Ok(Err(_)) => Err(member_busy()),
            Ok(Ok(false)) | Err(_) => {
                let error = format!("no majority of {} answers", self.group);
                let hint = format!("cohort group show {}", self.group);
                Err(ApiError::unavailable("no_leader", error).hint(hint))
            }
        }
    }

    pub(crate) fn command(
        handle: &MemberHandle,
        actor: String,
        request: Option<RequestId>,
        body: Body,
    ) -> Command {
        Command { version: COMMAND_VERSION, incarnation: handle.incarnation, actor, request, body }
    }

    /// Gets what was submitted into the log: here if this member leads, else by our own call to
    /// the leader. Tried again until the deadline; a submission carries what makes that safe.
    pub(crate) async fn commit(
        &self,
        handle: &MemberHandle,
        submitted: &Submitted,
    ) -> Result<CommandAnswer, ApiError> {
        let command = match submitted.follows(self, handle).await? {
            Follows::Command(command) => *command,
            Follows::Nothing { index } => return Ok(CommandAnswer { index, rejection: None }),
        };
        let committing = Committing::begin(monotonic_ms(), handle.member);
        let mut last = None;
        loop {
            let left_ms = committing.left_ms(monotonic_ms());
            let outcome = self.propose_here(handle, command.clone(), left_ms).await?;
            if outcome == Proposed::NoSpace {
                return Err(self.no_space());
            }
            let mut next = committing.proposed(monotonic_ms(), outcome);
            if let Next::Forward { to, within_ms } = next {
                match self.forward(to, &submitted.signed, Duration::from_millis(within_ms)).await {
                    Ok(answer) => return Ok(answer),
                    // As where the leader itself was asked.
                    Err(Some(CallError::Answered { answer, .. }))
                        if answer.kind == NO_SPACE || answer.kind == READ_ONLY =>
                    {
                        return Err(*answer);
                    }
                    Err(error) => last = error,
                }
                next = committing.failed(monotonic_ms());
            }
            match next {
                Next::Done { index, rejection } => return Ok(CommandAnswer { index, rejection }),
                Next::Again { after_ms } | Next::Forward { within_ms: after_ms, .. } => {
                    tokio::time::sleep(Duration::from_millis(after_ms)).await;
                }
                Next::GiveUp => break,
            }
        }
        let why = last.map_or_else(|| "the group has no leader".to_owned(), |e| chain(&e));
        let error = format!("not confirmed within {} s: {why}", COMMAND_MS_MAX / 1_000);
        Err(ApiError::unavailable("outcome_unknown", error).hint("trying again is safe"))
    }

    /// Passes a submission on to the leader. `Err(None)`: its address is not known here.
    async fn forward(
        &self,
        to: MemberId,
        signed: &Forwarded,
        within: Duration,
    ) -> Result<CommandAnswer, Option<CallError>> {
        let (server, address) = self.whereabouts(to).ok_or(None)?;
        let call = Call::post(FORWARD, &ToGroup::new(&self.group, signed)).deadline(within);
        self.call_member(&server, &address, call).await.map_err(Some)
    }

    /// Signs what this server submits to the group through the member at `address`.
    pub(crate) fn sign(
        &self,
        address: &str,
        submission: Submission,
    ) -> Result<SignedSubmission, CallError> {
        let signed = SignedSubmission::sign(&self.identity.current(), &self.group, submission);
        let address = address.to_owned();
        signed.map_err(|error| CallError::Request { address, source: error.into() })
    }

    /// Calls a member of the group. Where it does not answer, another address is next, if one is
    /// known.
    pub(crate) async fn call_member<T: DeserializeOwned>(
        &self,
        server: &ServerId,
        address: &str,
        call: Call,
    ) -> Result<T, CallError> {
        let result = self.client.call_json(&self.target(server, address), call).await;
        if result.as_ref().is_err_and(|error| !error.is_answer()) {
            self.book.lock().missed(server, address);
        }
        result
    }

    /// Proposes at this member only. After `within_ms`, the outcome is unknown.
    pub(crate) async fn propose_here(
        &self,
        handle: &MemberHandle,
        command: Command,
        within_ms: u64,
    ) -> Result<Proposed, ApiError> {
        let Some(answer) = handle.inputs.propose(command) else { return Ok(Proposed::Busy) };
        match tokio::time::timeout(Duration::from_millis(within_ms), answer).await {
            Ok(answer) => answer.map_err(|_| member_busy()),
            Err(_) => Ok(Proposed::Unknown),
        }
    }
}

/// The member here does not answer.
pub(crate) fn member_busy() -> ApiError {
    ApiError::unavailable("member_busy", "this server's member is overloaded, or stopping")
}

#[cfg(test)]
#[path = "shared_test.rs"]
mod shared_test;
