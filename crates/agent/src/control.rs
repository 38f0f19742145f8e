//! The control port: orders for servers, commands from people, and calls between members.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequest, Request, State as Context};
use axum::{Json, RequestExt as _, Router};
use cohort_base::chain;
use cohort_consensus::RaftId;
use cohort_core::Rejection;
use cohort_core::ids::{MemberId, ServerId};
use cohort_distribute::{Participant, TRANSFER, TransferAnswer, TransferRequest};
use cohort_identity::{Peer, Role, UnixTime};
use cohort_registry::attest::{ATTEST, AttestRequest, Attestation};
use cohort_server::answers::{self, FORWARD_MS_MAX, REPORTS_MAX};
use cohort_server::asking::{ORDERS_VALID_MS, WAIT_MS_MAX};
use cohort_server::member::{Input, Proposed};
use cohort_server::transfers::keep_known;
use cohort_wire::agent::{
    CHECK, CLAIM_MEMBER, COMMAND, CONTACTS, ClaimMemberAnswer, CommandAnswer, ContactsAnswer,
    ContactsRequest, EVENTS, FORWARD, Forwarded, GroupStatus, JOIN_GROUP, KILL, LOG, ORDERS,
    OrdersAnswer, OrdersRequest, POLICIES, PolicyInForce, REPORT, REVOCATIONS, STATUS,
    SignedSubmission, Submission, TRANSFER_LEADER, ToGroup, TransferLeaderAnswer, WAIT,
};
use cohort_wire::http::{ApiError, ApiJson, Call, Caller, Certificate, Endpoints, Routes, Who};
use cohort_wire::kill::{KillAnswer, SignedKill};
use cohort_wire::revocation::{RevocationsAnswer, RevocationsExchange};
use serde::de::DeserializeOwned;

use crate::attesting;
use crate::checking;
use crate::contacts::monotonic_ms;
use crate::events;
use crate::logs;
use crate::member::View;
use crate::revoking;
use crate::shared::{MemberHandle, Shared, member_busy};
use crate::status::group_status;
use crate::submitted::{Follows, Submitted, server_of};
use crate::trust::{BUNDLE, MANIFEST, ManifestRequest};

/// The largest request body, in bytes: a batch of reports with their output.
const BODY_BYTES_MAX: usize = 512 * 1024;

type Cx = Context<Arc<Shared>>;

/// Agents, for messages between servers of a group.
const AGENTS: Who = Who::Roles(&[Role::Agent]);
/// Every certificate of the fleet.
const ALL: Who = Who::Roles(&Role::ALL);

/// The routes of the control port, and who may use them.
fn endpoints() -> (Router<Arc<Shared>>, Endpoints) {
    let operators = Who::Roles(&[Role::Operator]);
    let forwarders = Who::Roles(&[Role::Operator, Role::Agent, Role::Hub]);
    Routes::default()
        .post(ORDERS, AGENTS, orders)
        .post(WAIT, AGENTS, wait)
        .post(REPORT, AGENTS, report)
        .post(JOIN_GROUP, AGENTS, join_group)
        .post(CLAIM_MEMBER, AGENTS, claim_member)
        .post(COMMAND, operators, command)
        .post(FORWARD, AGENTS, forward)
        .post(ATTEST, AGENTS, attest)
        .post(CONTACTS, AGENTS, contacts)
        .get(STATUS, ALL, status)
        .post(LOG, operators, logs::log)
        .post(EVENTS, ALL, events::events)
        .post(CHECK, operators, checking::check)
        .get(POLICIES, ALL, policies)
        .get(&format!("{STATUS}/local"), ALL, status_local)
        .get(KILL, ALL, kill_get)
        .post(KILL, forwarders, kill_set)
        .post(REVOCATIONS, forwarders, revocations)
        .post(TRANSFER_LEADER, Who::Roles(&[Role::Operator, Role::Agent]), transfer_leader)
        .get(BUNDLE, AGENTS, bundle)
        .post(MANIFEST, AGENTS, manifest)
        .post(TRANSFER, AGENTS, transfer)
        .build()
}

/// The control port.
pub(crate) fn router(shared: Arc<Shared>) -> Router {
    let (routes, _) = endpoints();
    routes.layer(DefaultBodyLimit::max(BODY_BYTES_MAX)).with_state(shared)
}

/// A message of a server of this group, and the member here that it is for.
struct Asked<T> {
    /// By its certificate: an agent speaks only for itself.
    server: ServerId,
    handle: MemberHandle,
    body: T,
}

impl<T> Asked<T> {
    /// Takes a message in, and latches the kill registers that came with it.
    async fn of(shared: &Shared, caller: &Caller, message: ToGroup<T>) -> Result<Self, ApiError> {
        let server = server_of(&caller.0)?;
        shared.same_group(&message.group, message.version)?;
        shared.latch(message.kill).await;
        Ok(Self { server, handle: shared.need_member()?, body: message.body })
    }

    /// Requires that the server carries a member of this group.
    fn by_member(self) -> Result<Self, ApiError> {
        let Asked { server, handle, .. } = &self;
        let view = handle.view();
        let known = view.state.servers.get(server).and_then(|known| known.member);
        known.ok_or_else(|| {
            ApiError::forbidden(format!("{server} carries no member of this group"))
        })?;
        Ok(self)
    }
}

/// Refuses a server whose certificate names another group.
fn of_this_group(request: &Request, shared: &Shared) -> Result<(), ApiError> {
    let named = request.extensions().get::<Certificate>().and_then(|it| it.group.as_deref());
    match named {
        Some(group) if group != shared.group.as_str() => {
            let error = format!("the caller's certificate is for {group}, not {}", shared.group);
            Err(ApiError::conflict(error).hint("cohort group list"))
        }
        Some(_) | None => Ok(()),
    }
}

/// Signed submissions, and the member here that they are for.
struct Submitter<T> {
    /// By the certificate of the connection: the author.
    by: Peer,
    handle: MemberHandle,
    body: T,
}

impl<T: DeserializeOwned + Send> FromRequest<Arc<Shared>> for Submitter<T> {
    type Rejection = ApiError;

    async fn from_request(mut request: Request, shared: &Arc<Shared>) -> Result<Self, ApiError> {
        let Caller(by) = request.extract_parts().await?;
        of_this_group(&request, shared)?;
        let ApiJson(message): ApiJson<ToGroup<T>> = ApiJson::from_request(request, shared).await?;
        shared.same_group(&message.group, message.version)?;
        shared.latch(message.kill).await;
        Ok(Submitter { by, handle: shared.need_member()?, body: message.body })
    }
}

impl<T: DeserializeOwned + Send> FromRequest<Arc<Shared>> for Asked<T> {
    type Rejection = ApiError;

    async fn from_request(mut request: Request, shared: &Arc<Shared>) -> Result<Self, ApiError> {
        let caller: Caller = request.extract_parts().await?;
        of_this_group(&request, shared)?;
        let ApiJson(message) = ApiJson::from_request(request, shared).await?;
        Asked::of(shared, &caller, message).await
    }
}

fn not_leader() -> ApiError {
    ApiError::unavailable("not_leader", "this member does not lead")
}

async fn orders(
    Context(shared): Cx,
    Asked { server, handle, body }: Asked<OrdersRequest>,
) -> Result<Json<OrdersAnswer>, ApiError> {
    // A stranger costs no read. One that has just joined may be unknown here for a moment: it asks
    // to join again, which says so.
    let view = match handle.view() {
        view if view.state.servers.contains_key(&server) => shared.fresh(&handle).await?,
        view => view,
    };
    let life = body.life;
    note(&shared, &view, &server, body);
    let answer = answer(&shared, &view, (&server, life), ORDERS_VALID_MS);
    let clock_ahead_ms = shared.contacts.clock_ahead_ms(&server, view.leads());
    Ok(Json(OrdersAnswer { clock_ahead_ms, ..answer }))
}

/// Records what the agent that speaks for a server says of itself.
fn note(shared: &Shared, view: &View, server: &ServerId, body: OrdersRequest) {
    if answers::speaks_for(&view.state, server, body.life) {
        if body.machine.vouched {
            shared.contacts.heard(server, 0, body.doing);
        }
        shared.contacts.said(server, 0, body.machine);
    }
}

fn answer(
    shared: &Shared,
    view: &View,
    (server, life): (&ServerId, u64),
    valid_ms: u64,
) -> OrdersAnswer {
    let identity = shared.identity.current();
    let unproven = shared.proofs.unproven(&view.state, identity.roots(), UnixTime::now());
    let mut orders = answers::orders(view, server, life);
    if let Some(orders) = &mut orders {
        orders.apps.retain(|orders| !unproven.contains(&orders.app));
    }
    OrdersAnswer {
        orders,
        elsewhere: answers::elsewhere(&view.state, server, life),
        orders_valid_ms: valid_ms,
        kill: shared.kill.signed(),
        leader: view.leader().cloned(),
        voters: view.voters(),
        clock_ahead_ms: None,
        revocations: shared.identity.revocations().digest(),
    }
}

/// Answers as soon as the orders differ from those that the server has. They may be stale.
async fn wait(
    Context(shared): Cx,
    Asked { server, handle, body }: Asked<OrdersRequest>,
) -> Result<Json<OrdersAnswer>, ApiError> {
    let (life, known_hash) = (body.life, body.known);
    known(&handle.view(), &server)?;
    note(&shared, &handle.view(), &server, body);
    let mut view = handle.view.clone();
    let deadline = tokio::time::Instant::now() + Duration::from_millis(WAIT_MS_MAX);
    loop {
        let now = Arc::clone(&view.borrow_and_update());
        let answer = answer(&shared, &now, (&server, life), 0);
        let hash = answers::hash_of(answer.orders.as_ref());
        if answers::answers_now(now.raft.leader.is_some(), hash, known_hash) {
            return Ok(Json(answer));
        }
        match tokio::time::timeout_at(deadline, view.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Ok(Json(answer)),
        }
    }
}

async fn report(
    Context(shared): Cx,
    Submitter { by, handle, body: reports }: Submitter<Vec<SignedSubmission>>,
) -> Result<Json<Vec<CommandAnswer>>, ApiError> {
    if reports.len() > REPORTS_MAX {
        let error = format!("more than {REPORTS_MAX} reports at once");
        return Err(ApiError::bad_request(error));
    }
    // Another member may know the server already: an honest one asks that member next.
    known(&handle.view(), &server_of(&by)?)?;
    // One after the other: a later one that overtook would make the earlier one count as old.
    let arrived_ms = monotonic_ms();
    let mut answers = Vec::with_capacity(reports.len());
    for signed in reports {
        if !answers::takes_next_report(answers.len(), arrived_ms, monotonic_ms()) {
            break;
        }
        match take_report(&shared, &by, &handle, signed).await {
            Ok(answer) => answers.push(answer),
            Err(error) if answers.is_empty() => return Err(error),
            // The server learns of those that are in the log.
            Err(_) => break,
        }
    }
    Ok(Json(answers))
}

async fn take_report(
    shared: &Shared,
    by: &Peer,
    handle: &MemberHandle,
    signed: SignedSubmission,
) -> Result<CommandAnswer, ApiError> {
    let submitted = Submitted::by_sender(shared, by, signed, None)?;
    let Submission::Report { report, .. } = &submitted.what else { return Err(misplaced(REPORT)) };
    if !shared.health_pace.lock().accepts(report, monotonic_ms()) {
        let rejection = Some(Rejection::Busy { server: report.server.clone() });
        return Ok(CommandAnswer { index: handle.view().raft.applied.0, rejection });
    }
    shared.commit(handle, &submitted).await
}

fn misplaced(path: &str) -> ApiError {
    ApiError::bad_request(format!("{path} does not take what was submitted"))
}

/// Refuses what comes from a server that is not in the group.
fn known(view: &View, server: &ServerId) -> Result<(), ApiError> {
    match view.state.servers.contains_key(server) {
        true => Ok(()),
        false => Err(ApiError::forbidden(format!("{server} is not in this group"))),
    }
}

async fn join_group(
    Context(shared): Cx,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    Submitter { by, handle, body: signed }: Submitter<SignedSubmission>,
) -> Result<Json<CommandAnswer>, ApiError> {
    let submitted = Submitted::by_sender(&shared, &by, signed, Some(from.ip()))?;
    match submitted.what {
        Submission::Join(_) => shared.commit(&handle, &submitted).await.map(Json),
        Submission::Report { .. } | Submission::Command(_) => Err(misplaced(JOIN_GROUP)),
    }
}

async fn claim_member(
    Asked { server, handle, body: member }: Asked<MemberId>,
) -> Result<Json<ClaimMemberAnswer>, ApiError> {
    let answer = handle.inputs.claim(server, member).ok_or_else(member_busy)?;
    match answer.await.map_err(|_| member_busy())? {
        Some(granted) => Ok(Json(ClaimMemberAnswer { granted })),
        None => Err(not_leader()),
    }
}

async fn command(
    Context(shared): Cx,
    Submitter { by, handle, body: signed }: Submitter<SignedSubmission>,
) -> Result<Json<CommandAnswer>, ApiError> {
    let submitted = Submitted::by_sender(&shared, &by, signed, None)?;
    match submitted.what {
        Submission::Command(_) => shared.commit(&handle, &submitted).await.map(Json),
        Submission::Report { .. } | Submission::Join(_) => Err(misplaced(COMMAND)),
    }
}

/// The leader verifies what a member passes on as if its author had sent it.
async fn forward(
    Context(shared): Cx,
    asked: Asked<Forwarded>,
) -> Result<Json<CommandAnswer>, ApiError> {
    let Asked { server, handle, body: signed } = asked.by_member()?;
    let submitted = Submitted::forwarded(&shared, &server, signed)?;
    if let Submission::Report { report, .. } = &submitted.what
        && !shared.health_pace.lock().accepts(report, monotonic_ms())
    {
        let rejection = Some(Rejection::Busy { server: report.server.clone() });
        return Ok(Json(CommandAnswer { index: handle.view().raft.applied.0, rejection }));
    }
    let command = match submitted.follows(&shared, &handle).await? {
        Follows::Command(command) => *command,
        Follows::Nothing { index } => return Ok(Json(CommandAnswer { index, rejection: None })),
    };
    match shared.propose_here(&handle, command, FORWARD_MS_MAX).await? {
        Proposed::Done { index, rejection } => Ok(Json(CommandAnswer { index, rejection })),
        Proposed::NotLeader { .. } => Err(not_leader()),
        Proposed::NoSpace => Err(shared.no_space()),
        Proposed::Busy | Proposed::Unknown => {
            Err(ApiError::unavailable("outcome_unknown", "the command was not confirmed"))
        }
    }
}

/// The member here attests what the leader writes to the registry for the group.
async fn attest(
    Context(shared): Cx,
    asked: Asked<AttestRequest>,
) -> Result<Json<Attestation>, ApiError> {
    let Asked { server, handle, body } = asked.by_member()?;
    attesting::attest(&shared, &server, &handle, &body).await.map(Json)
}

async fn contacts(
    Context(shared): Cx,
    asked: Asked<ContactsRequest>,
) -> Result<Json<ContactsAnswer>, ApiError> {
    let Asked { server: voter, handle, body: mut request } = asked.by_member()?;
    if let Some(ability) = request.ability {
        handle.inputs.offer(Input::Reaches { voter, ability });
    }
    for (server, age_ms) in &request.age_ms {
        let doing = request.doing.remove(server).unwrap_or_default();
        shared.contacts.heard(server, *age_ms, doing);
        if let Some(machine) = request.machines.remove(server) {
            shared.contacts.said(server, *age_ms, machine);
        }
    }
    let asks_ability = handle.view().asks_voters;
    let clocks_ahead_ms = shared.contacts.clocks_ahead_ms(request.age_ms.keys());
    let (kill, revocations) = (shared.kill.signed(), shared.identity.revocations().digest());
    Ok(Json(ContactsAnswer { kill, asks_ability, clocks_ahead_ms, revocations }))
}

async fn status(Context(shared): Cx) -> Result<Json<GroupStatus>, ApiError> {
    if let Some(handle) = shared.handle() {
        let view = handle.view();
        if view.leads() {
            return Ok(Json(own_status(&shared, &handle, &view).await));
        }
        if let Some(leader) = view.raft.leader
            && let Some((server, address)) = shared.whereabouts(MemberId(leader.0))
            && let Ok(status) = ask_status(&shared, &server, &address).await
        {
            return Ok(Json(status));
        }
        return Ok(Json(group_status(&shared, &view, false)));
    }
    for member in shared.members() {
        if let Ok(status) = ask_status(&shared, &member.server, &member.address).await {
            return Ok(Json(status));
        }
    }
    Err(ApiError::unavailable("no_member", format!("no member of {} answers", shared.group))
        .hint("check that the agents of the group's voters run and reach each other"))
}

/// What a hub that has lost its policies is told again.
async fn policies(Context(shared): Cx) -> Result<Json<Vec<PolicyInForce>>, ApiError> {
    let view = shared.need_member()?.view();
    let policies = view.state.apps.iter().map(|(app, state)| PolicyInForce {
        app: app.clone(),
        revision: state.revision,
        policy: (*state.policy).clone(),
    });
    Ok(Json(policies.collect()))
}

async fn ask_status(
    shared: &Shared,
    server: &ServerId,
    address: &str,
) -> Result<GroupStatus, cohort_wire::http::CallError> {
    let call = Call::get(format!("{STATUS}/local")).deadline(Duration::from_secs(2));
    shared.call_member(server, address, call).await
}

/// The group as this member knows it; never forwarded.
async fn status_local(Context(shared): Cx) -> Result<Json<GroupStatus>, ApiError> {
    let handle = shared.need_member()?;
    let view = handle.view();
    Ok(Json(own_status(&shared, &handle, &view).await))
}

/// The group as this member knows it: with a quorum if it leads one, else `view`.
async fn own_status(shared: &Shared, handle: &MemberHandle, view: &View) -> GroupStatus {
    match shared.fresh(handle).await {
        Ok(fresh) if fresh.leads() => group_status(shared, &fresh, true),
        Ok(_) | Err(_) => group_status(shared, view, false),
    }
}

async fn kill_get(Context(shared): Cx) -> Json<KillAnswer> {
    Json(shared.kill.answer(false))
}

/// Anybody in the fleet may pass a register on: only the operator's signature in it counts.
async fn kill_set(
    Context(shared): Cx,
    ApiJson(register): ApiJson<SignedKill>,
) -> Result<Json<KillAnswer>, ApiError> {
    let changed = shared.kill.offer(vec![register]).await?;
    Ok(Json(shared.kill.answer(changed)))
}

/// Anybody in the fleet may pass revocations on: only operators' signatures in them count.
async fn revocations(
    Context(shared): Cx,
    ApiJson(exchange): ApiJson<RevocationsExchange>,
) -> Result<Json<RevocationsAnswer>, ApiError> {
    revoking::answer(&shared, exchange).await.map(Json)
}

async fn transfer_leader(
    Context(shared): Cx,
    caller: Caller,
    ApiJson(message): ApiJson<ToGroup<Option<ServerId>>>,
) -> Result<Json<TransferLeaderAnswer>, ApiError> {
    let by_member = caller.0.role == Role::Agent;
    let to = message.body.clone();
    let handle = if by_member {
        Asked::of(&shared, &caller, message).await?.by_member()?.handle
    } else {
        shared.same_group(&message.group, message.version)?;
        shared.need_member()?
    };
    let view = handle.view();
    let Some(from) = view.leader().cloned() else {
        return Err(ApiError::unavailable("no_leader", "the group has no leader right now"));
    };
    if !view.raft.is_leader() {
        if by_member {
            return Err(not_leader());
        }
        let address = view.state.servers.get(&from).map(|known| known.address.clone());
        let call = Call::post(TRANSFER_LEADER, &ToGroup::new(&shared.group, to));
        let address = address.unwrap_or_default();
        return shared.call_member(&from, &address, call).await.map(Json).map_err(|error| {
            let answer = ApiError::unavailable("leader_away", chain(&error));
            error.hints().iter().fold(answer, |answer, hint| answer.hint(hint.clone()))
        });
    }
    let to = match &to {
        None => None,
        Some(server) => match view.state.servers.get(server).and_then(|known| known.member) {
            Some(member) => Some(RaftId(member.0)),
            None => {
                let error = format!("{server} carries no member of {}", shared.group);
                let hint = format!("cohort group show {}", shared.group);
                return Err(ApiError::bad_request(error).hint(hint));
            }
        },
    };
    let begun = Instant::now();
    let answer = handle.inputs.transfer(to).ok_or_else(member_busy)?;
    match answer.await.map_err(|_| member_busy())? {
        Ok(to) => {
            let to = view.state.server_of(MemberId(to.0)).cloned();
            tracing::info!(to = ?to, ms = begun.elapsed().as_millis(), "leadership handed over");
            Ok(Json(TransferLeaderAnswer { to: to.unwrap_or_else(|| from.clone()), from }))
        }
        Err(failure) => Err(ApiError::conflict(chain(&failure))),
    }
}

/// A server's transfers; the leader answers with peers to fetch from. Nothing is logged.
async fn transfer(
    Context(shared): Cx,
    caller: Caller,
    ApiJson(message): ApiJson<ToGroup<TransferRequest>>,
) -> Result<Json<TransferAnswer>, ApiError> {
    let Asked { server, handle, body: mut request } = Asked::of(&shared, &caller, message).await?;
    request.check().map_err(|error| ApiError::bad_request(chain(&error)))?;
    let view = handle.view();
    if !view.leads() {
        shared.tracker.clear();
        return Err(not_leader());
    }
    let Some(known) = view.state.servers.get(&server) else {
        return Err(ApiError::forbidden(format!("{server} does not belong to this group")));
    };
    keep_known(&mut request, &view.state);
    let leads = server == *shared.server();
    let (address, rack) = (known.address.clone(), known.rack.clone());
    let from = Participant { server, address, rack, leads };
    let answer = shared.tracker.report(&from, &request);
    answer.map(Json).map_err(|error| ApiError::bad_request(chain(&error)))
}

/// The newest metadata verified here; the caller verifies it again.
async fn bundle(Context(shared): Cx) -> Result<Vec<u8>, ApiError> {
    let bundle = shared.repository.as_ref().and_then(|repository| repository.bundle());
    bundle.ok_or_else(|| ApiError::not_found("no metadata of the repository is known here"))
}

async fn manifest(
    Context(shared): Cx,
    ApiJson(request): ApiJson<ManifestRequest>,
) -> Result<Vec<u8>, ApiError> {
    let ManifestRequest { app, version, platform } = request;
    let bytes = shared
        .repository
        .as_ref()
        .and_then(|repository| repository.cached_manifest_bytes(&app, &version, &platform));
    bytes
        .ok_or_else(|| ApiError::not_found(format!("no manifest of {app} {version} is known here")))
}

#[cfg(test)]
#[path = "control_test.rs"]
mod control_test;
