use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use axum::extract::ConnectInfo;
use axum::extract::State as Context;
use axum::routing::post;
use axum::{Json, Router};
use cohort_consensus::Role as RaftRole;
use cohort_core::Body;
use cohort_core::ids::{
    BootEpoch, Incarnation, MemberId, REQUEST_ID_BYTES_MAX, RequestId, ServerId,
};
use cohort_core::machine::{DiskSpace, Machine};
use cohort_core::orders::{Fence, MemberAddress};
use cohort_core::report::{Outcome, Report};
use cohort_distribute::{TransferReport, TransferRequest};
use cohort_identity::{Alpn, Peer, Role, UnixTime};
use cohort_registry::records::{SCHEMA, ServerRecord, encode};
use cohort_registry::{Op, Registry as _, Txn, keys};
use cohort_server::answers::{REPORTS_MAX, hash_of};
use cohort_server::asking::WAIT_MS_MAX;
use cohort_server::member::{Input, Proposed, View};
use cohort_wire::agent::{
    CommandAnswer, CommandRequest, ContactsRequest, FORWARD, Forwarded, JoinGroupRequest,
    OrdersAnswer, OrdersRequest, SignedSubmission, Submission, ToGroup,
};
use cohort_wire::http::{
    ApiError, ApiJson, Call, Caller, Client, Endpoint, Endpoints, Handler, Target,
};
use cohort_wire::hub::ADDRESS_BYTES_MAX;
use cohort_wire::kill::{KillAnswer, KillRegister, KillScope, SignedKill};
use cohort_wire::revocation::{Revocation, RevocationsExchange, SignedRevocation};

use super::{Asked, Submitter};
use crate::member::{Queued, Waiter};
use crate::shared::MemberHandle;
use crate::submitted::Submitted;
use crate::testing::{GROUP, Lab, add, apply, founded, handle, policy, server, web};

#[path = "submitted_test.rs"]
mod submitted_test;

fn caller(role: Role, name: &str) -> Caller {
    Caller(Peer::new(role, name).unwrap())
}

fn to_group<T>(body: T) -> ToGroup<T> {
    ToGroup::new(&GROUP.parse().unwrap(), body)
}

/// Signed by a server, or by the operator `ana`.
fn signed(lab: &Lab, by: &Peer, submission: Submission) -> SignedSubmission {
    let (slot, group) = (lab.slot_of(by), GROUP.parse().unwrap());
    SignedSubmission::sign(&slot.current(), &group, submission).unwrap()
}

fn agent(name: &str) -> Peer {
    Peer::new(Role::Agent, name).unwrap()
}

fn operator() -> Peer {
    Peer::new(Role::Operator, "ana").unwrap()
}

/// On a connection of `by`.
fn submits<T>(by: &Peer, handle: &MemberHandle, body: T) -> Submitter<T> {
    Submitter { by: by.clone(), handle: handle.clone(), body }
}

fn reports(life: u64, incarnation: u64, report: Report) -> Submission {
    Submission::Report { life, incarnation: Incarnation(incarnation), report }
}

fn command(id: &str, body: Body) -> Submission {
    Submission::Command(CommandRequest { request: RequestId(id.to_owned()), body })
}

fn asked<T>(from: &str, handle: &MemberHandle, body: T) -> Asked<T> {
    Asked { server: server(from), handle: handle.clone(), body }
}

/// Status and kind of an error answer.
fn refused<T: std::fmt::Debug>(answer: Result<T, ApiError>) -> (u16, String) {
    let error = answer.unwrap_err();
    (error.status, error.kind)
}

fn applied(handle: &MemberHandle) -> u64 {
    handle.view.borrow().raft.applied.0
}

fn stop(lab: &Lab, by: Role) -> SignedKill {
    stops(lab, by, KillScope::Fleet)
}

fn stops(lab: &Lab, by: Role, scope: KillScope) -> SignedKill {
    let register =
        KillRegister { scope, epoch: 1, on: true, reason: "bad night".to_owned(), at: 0 };
    SignedKill::sign(&lab.slot_of(&Peer::new(by, "ana").unwrap()).current(), &register).unwrap()
}

/// A view of a group of `s1`, which carries a member and does not lead, and `s2`, which carries
/// none.
fn following(lab: &Lab) -> View {
    let mut state = founded();
    apply(&mut state, add("s2"));
    let mut view = View { state: Arc::new(state), ..lab.leading() };
    view.raft.role = RaftRole::Follower;
    view
}

fn led_by(leader: Option<u64>, view: View) -> View {
    let mut view = view;
    view.raft.leader = leader.map(cohort_consensus::RaftId);
    view
}

#[tokio::test]
async fn a_message_of_another_group_is_refused_and_kill_registers_need_no_member() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let send = async |message| Asked::of(&shared, &caller(Role::Agent, "s2"), message).await;
    let message = ToGroup { kill: vec![stop(&lab, Role::Operator)], ..to_group(()) };
    let foreign = ToGroup { group: "linux-arm".parse().unwrap(), ..message.clone() };
    assert_eq!(send(foreign).await.err().unwrap().status, 409);
    assert_eq!(shared.kill.on(), None);
    assert_eq!(send(message).await.err().unwrap().kind, "no_member");
    assert!(shared.kill.on().is_some());
}

fn report(of: &str, sequence: u64) -> Report {
    Report {
        server: server(of),
        boot_epoch: BootEpoch(1),
        sequence,
        app: web(),
        fence: Fence::default(),
        attempt: 1,
        outcome: Outcome::Found { release: None, in_service: false },
    }
}

fn host(ip: &str) -> ConnectInfo<SocketAddr> {
    ConnectInfo(SocketAddr::new(ip.parse().unwrap(), 1))
}

fn joins(address: &str, rack: &str) -> JoinGroupRequest {
    JoinGroupRequest { life: 0, address: address.to_owned(), rack: Some(rack.to_owned()) }
}

#[tokio::test]
async fn only_a_server_that_the_registry_has_in_this_group_joins_and_it_keeps_its_rack() {
    let lab = Lab::new().await;
    let registry = lab.registry();
    let shared = lab.agent_over("s1", Arc::clone(&registry) as _).await;
    let handle = lab.carry(&shared).await;
    let s2 = agent("s2");
    let join = async |request| {
        let body = submits(&s2, &handle, signed(&lab, &s2, Submission::Join(request)));
        super::join_group(Context(Arc::clone(&shared)), host("10.0.0.2"), body).await
    };
    let record = async |group: &str| {
        let record = ServerRecord {
            schema: SCHEMA,
            server: server("s2"),
            address: "a:1".to_owned(),
            labels: Default::default(),
            rack: None,
            group: group.parse().unwrap(),
        };
        let then = vec![Op::put(keys::server(&server("s2")), encode(&record))];
        registry.txn(Txn { then, ..Txn::default() }).await.unwrap();
    };
    assert_eq!(join(joins("a:1", "r1")).await.unwrap_err().status, 403, "unknown");
    record("linux-arm").await;
    assert_eq!(join(joins("a:1", "r1")).await.unwrap_err().status, 403, "of another group");
    assert!(!shared.fresh(&handle).await.unwrap().state.servers.contains_key(&server("s2")));
    record(GROUP).await;
    let at = async |request| {
        let Json(CommandAnswer { rejection, .. }) = join(request).await.unwrap();
        assert_eq!(rejection, None);
        let known = shared.fresh(&handle).await.unwrap().state.servers[&server("s2")].clone();
        (known.address.clone(), known.rack.clone())
    };
    assert_eq!(at(joins("a:1", "r1")).await, ("a:1".to_owned(), Some("r1".to_owned())));
    assert_eq!(at(joins("a:2", "r2")).await, ("a:2".to_owned(), Some("r1".to_owned())));
    let long = "a".repeat(ADDRESS_BYTES_MAX + 1);
    assert_eq!(join(joins(&long, "r1")).await.unwrap_err().status, 400);
}

#[tokio::test]
async fn a_registry_that_is_away_lets_no_server_join_and_none_has_to_wait_that_is_known() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let (handle, _views, queue) = handle(following(&lab));
    let join = async |from, address| {
        let by = agent(from);
        let joins = signed(&lab, &by, Submission::Join(joins(address, "r1")));
        let body = submits(&by, &handle, joins);
        super::join_group(Context(Arc::clone(&shared)), host("10.0.0.2"), body).await
    };
    assert_eq!(refused(join("s3", "s3:1").await), (503, "registry_away".to_owned()));
    let Json(answer) = join("s2", "s2:1").await.unwrap();
    assert_eq!(answer, CommandAnswer { index: applied(&handle), rejection: None });
    assert!(queue.try_recv().is_err(), "nothing is proposed");
}

#[tokio::test]
async fn a_leader_that_cannot_write_tells_operators_what_its_disk_lacks() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let handle = lab.carry(&shared).await;
    let say = async || {
        let body = Body::Pause { app: web(), reason: String::new(), for_ms: None };
        let body = submits(&operator(), &handle, signed(&lab, &operator(), command("r", body)));
        super::command(Context(Arc::clone(&shared)), body).await
    };
    for (disk, kind) in [(DiskSpace::Exhausted, "no_space"), (DiskSpace::ReadOnly, "read_only")] {
        shared.disk.send_replace(disk);
        assert!(handle.inputs.put(Input::Disk(disk)).await);
        assert_eq!(refused(say().await), (503, kind.to_owned()));
    }
    assert!(handle.inputs.put(Input::Disk(DiskSpace::Low)).await);
    assert!(say().await.unwrap().0.index > 0);
}

#[tokio::test]
async fn what_the_leader_says_of_its_disk_reaches_those_who_asked_another_member() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let (handle, _views, queue) = handle(following(&lab));
    let full = async || Err::<(), _>(ApiError::unavailable("no_space", "full").hint("free space"));
    let leader = Handler::Http(Router::new().route(FORWARD, post(full)));
    let address = lab.serve("s2", Alpn::Control, leader).await;
    let leader = MemberAddress { server: server("s2"), address, member: MemberId(2) };
    shared.book.lock().learn(&[leader]);
    let pause = Body::Pause { app: web(), reason: String::new(), for_ms: None };
    let submission = signed(&lab, &operator(), command("r", pause));
    let submitted = Submitted::by_sender(&shared, &operator(), submission, None).unwrap();
    let answered = async {
        tokio::task::yield_now().await;
        let Queued::Request(_, _, Waiter::Proposed(reply)) = queue.try_recv().unwrap() else {
            panic!("no proposal")
        };
        let leader = Some(cohort_consensus::RaftId(2));
        reply.send(Proposed::NotLeader { leader }).unwrap();
    };
    let (answer, ()) = tokio::join!(shared.commit(&handle, &submitted), answered);
    let error = answer.unwrap_err();
    assert_eq!((error.status, error.kind.as_str()), (503, "no_space"));
    assert!(!error.hints.is_empty());
}

#[tokio::test]
async fn only_a_member_passes_contacts_on() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let (handle, _views, _queue) = handle(following(&lab));
    let pass_on = async |from: &str| {
        let age_ms = [(server("s9"), 40)].into();
        let request = ContactsRequest {
            age_ms,
            doing: Default::default(),
            machines: Default::default(),
            ability: None,
        };
        super::contacts(Context(Arc::clone(&shared)), asked(from, &handle, request)).await
    };
    assert_eq!(pass_on("s2").await.unwrap_err().status, 403);
    assert!(shared.contacts.all().of(&server("s9")).is_none());
    let Json(answer) = pass_on("s1").await.unwrap();
    assert!(shared.contacts.all().of(&server("s9")).is_some());
    assert!(answer.clocks_ahead_ms.is_empty(), "one clock says nothing");
}

#[tokio::test]
async fn a_server_hears_with_its_orders_that_its_clock_is_wrong() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let handle = lab.carry(&shared).await;
    let noon_ms = 1_800_000_000_000;
    let clock =
        |unix_ms| Machine { unix_ms, disk: DiskSpace::Enough, vouched: true, stopped: false };
    let ahead_ms = async |unix_ms| {
        let (doing, machine) = (Default::default(), clock(unix_ms));
        let asked = asked("s1", &handle, OrdersRequest { life: 0, doing, known: 0, machine });
        let Json(answer) = super::orders(Context(Arc::clone(&shared)), asked).await.unwrap();
        answer.clock_ahead_ms.map(|ahead_ms| ahead_ms / 60_000)
    };
    assert_eq!(ahead_ms(noon_ms).await, None, "one clock says nothing");
    for name in ["s8", "s9"] {
        shared.contacts.said(&server(name), 0, clock(noon_ms));
    }
    assert_eq!(ahead_ms(noon_ms).await, Some(0));
    assert!(ahead_ms(noon_ms + 3_600_000).await.is_some_and(|minutes| minutes >= 59));
}

/// A member that hears of few servers knows from the leader which clock is wrong, and tells its
/// server.
#[tokio::test]
async fn the_leader_tells_members_which_of_their_servers_clocks_are_wrong() {
    let lab = Lab::new().await;
    let (leader, member) = (lab.agent("s1", None).await, lab.agent("s2", None).await);
    let (handle, _views, _queue) = handle(following(&lab));
    let clock =
        |unix_ms| Machine { unix_ms, disk: DiskSpace::Enough, vouched: true, stopped: false };
    let noon_ms = 1_800_000_000_000;
    for name in ["s1", "s2"] {
        leader.contacts.said(&server(name), 0, clock(noon_ms));
    }
    let wrong = server("s9");
    member.contacts.said(&wrong, 0, clock(noon_ms - 3_600_000));
    let request = ContactsRequest {
        age_ms: [(wrong.clone(), 0)].into(),
        doing: Default::default(),
        machines: [(wrong.clone(), clock(noon_ms - 3_600_000))].into(),
        ability: None,
    };
    let asked = asked("s1", &handle, request);
    let Json(answer) = super::contacts(Context(Arc::clone(&leader)), asked).await.unwrap();
    let minutes = answer.clocks_ahead_ms[&wrong] / 60_000;
    assert!((-60..-58).contains(&minutes), "{minutes}");
    assert_eq!(leader.contacts.clock_ahead_ms(&server("s1"), true), Some(0));
    member.contacts.clocks_are(answer.clocks_ahead_ms.clone());
    let told = member.contacts.clock_ahead_ms(&wrong, false);
    assert_eq!(told, Some(answer.clocks_ahead_ms[&wrong]));
}

#[tokio::test(start_paused = true)]
async fn a_question_is_held_until_the_orders_change_or_its_time_is_up() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let view = led_by(Some(1), following(&lab));
    let known = hash_of(cohort_server::answers::orders(&view, &server("s2"), 0).as_ref());
    let (handle, views, _queue) = handle(view.clone());
    let wait = async |known| {
        let request = OrdersRequest {
            life: 0,
            doing: Default::default(),
            known,
            machine: Machine { unix_ms: 0, disk: DiskSpace::Enough, vouched: true, stopped: false },
        };
        let begun = tokio::time::Instant::now();
        let asked = asked("s2", &handle, request);
        let Json(answer) = super::wait(Context(Arc::clone(&shared)), asked).await.unwrap();
        (answer, begun.elapsed().as_millis())
    };
    let (answer, took_ms) = wait(0).await;
    let hash = |answer: &OrdersAnswer| hash_of(answer.orders.as_ref());
    assert_eq!((hash(&answer), answer.orders_valid_ms, took_ms), (known, 0, 0));
    assert!(shared.contacts.all().of(&server("s2")).is_some(), "heard when it asks");
    let (answer, took_ms) = wait(known).await;
    assert_eq!(hash(&answer), known);
    assert!(took_ms >= u128::from(WAIT_MS_MAX), "{took_ms}");

    let mut changed = (*view.state).clone();
    // Without an operator's signature, it gives no orders.
    apply(&mut changed, policy());
    let unproven = View { state: Arc::new(changed), ..view.clone() };
    views.send_replace(Arc::new(unproven));
    assert_eq!(hash(&wait(0).await.0), known);
    let mut changed = (*view.state).clone();
    apply(&mut changed, lab.signed_policy());
    let changed = View { state: Arc::new(changed), ..view.clone() };
    let ((answer, took_ms), ()) = tokio::join!(wait(known), async {
        tokio::task::yield_now().await;
        views.send_replace(Arc::new(changed.clone()));
    });
    assert!(hash(&answer) != known && took_ms == 0, "{took_ms}");

    let lost = led_by(None, changed);
    let ((answer, took_ms), ()) = tokio::join!(wait(hash(&answer)), async {
        tokio::task::yield_now().await;
        views.send_replace(Arc::new(lost));
    });
    assert!(answer.leader.is_none() && took_ms == 0, "{took_ms}: it had better ask another one");
}

#[tokio::test]
async fn any_process_of_the_fleet_brings_a_kill_register_and_only_an_operators_counts() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let bring =
        async |register| super::kill_set(Context(Arc::clone(&shared)), ApiJson(register)).await;
    let real = stop(&lab, Role::Operator);
    assert_eq!(bring(stop(&lab, Role::Agent)).await.unwrap_err().status, 403);
    let elsewhere = KillScope::Group("linux-arm".parse().unwrap());
    let elsewhere = bring(stops(&lab, Role::Operator, elsewhere)).await;
    assert_eq!(elsewhere.unwrap_err().status, 409, "it would not spread from here");
    assert_eq!(shared.kill.on(), None);
    for changed in [true, false] {
        let Json(answer) = bring(real.clone()).await.unwrap();
        let registers = vec![real.clone()];
        assert_eq!(answer, KillAnswer { changed, registers, damaged: Vec::new() });
    }
    assert!(shared.kill.on().is_some());
}

#[tokio::test]
async fn leadership_moves_only_to_a_member_and_members_ask_the_leader_itself() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let (follower, views, _queue) = handle(led_by(None, following(&lab)));
    let transfer = async |role, name, to: Option<ServerId>| {
        let message = ApiJson(to_group(to));
        super::transfer_leader(Context(Arc::clone(&shared)), caller(role, name), message).await
    };
    shared.member.send_replace(Some(follower));
    let none = transfer(Role::Operator, "ana", None).await;
    assert_eq!(refused(none), (503, "no_leader".to_owned()));
    views.send_replace(Arc::new(led_by(Some(1), following(&lab))));
    let by_member = transfer(Role::Agent, "s1", None).await;
    assert_eq!(refused(by_member), (503, "not_leader".to_owned()), "not forwarded");
    let stranger = transfer(Role::Agent, "s2", None).await;
    assert_eq!(refused(stranger).0, 403, "carries no member");
    let _leader = lab.carry(&shared).await;
    let missing = transfer(Role::Operator, "ana", Some(server("s2"))).await;
    assert_eq!(refused(missing).0, 400);
    assert_eq!(refused(transfer(Role::Operator, "ana", None).await).0, 409, "nobody to take it");
}

#[tokio::test]
async fn only_the_leader_plans_transfers_and_only_for_servers_of_the_group() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let mut leading = following(&lab);
    leading.raft.role = RaftRole::Leader;
    let (handle, views, _queue) = handle(leading);
    shared.member.send_replace(Some(handle));
    let send = async |from: &str, count| {
        let artifact = "aa".repeat(32).parse().unwrap();
        let transfers = vec![TransferReport::new(artifact, 1 << 20); count];
        let request = ApiJson(to_group(TransferRequest { transfers }));
        super::transfer(Context(Arc::clone(&shared)), caller(Role::Agent, from), request).await
    };
    let report = async |from: &str| send(from, 1).await;
    assert_eq!(send("s9", 100).await.unwrap_err().status, 400, "before the log is asked");
    let _ = report("s2").await.unwrap();
    assert_eq!(shared.tracker.view().len(), 1);
    assert_eq!(report("s9").await.unwrap_err().status, 403);
    views.send_replace(Arc::new(following(&lab)));
    assert_eq!(report("s2").await.unwrap_err().kind, "not_leader");
    assert!(shared.tracker.view().is_empty(), "what it knew as the leader is forgotten");
}

#[tokio::test]
async fn a_server_without_a_member_has_the_status_from_the_first_member_that_answers() {
    let lab = Lab::new().await;
    let (member, server_only) = (lab.agent("s1", None).await, lab.agent("s2", None).await);
    let status = async || super::status(Context(Arc::clone(&server_only))).await;
    assert_eq!(refused(status().await), (503, "no_member".to_owned()));
    let _handle = lab.carry(&member).await;
    let at = |name: &str, address: String, number| MemberAddress {
        server: server(name),
        address,
        member: MemberId(number),
    };
    let address = lab.serve_control(&member).await;
    server_only.book.lock().learn(&[at("s3", "127.0.0.1:1".to_owned(), 3), at("s1", address, 1)]);
    let Json(answer) = status().await.unwrap();
    assert_eq!((answer.answered_by, answer.linearizable), (server("s1"), true));
}

#[tokio::test]
async fn what_could_not_be_read_through_a_leader_is_shown_as_such() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let (handle, _views, queue) = handle(led_by(None, following(&lab)));
    drop(queue);
    shared.member.send_replace(Some(handle));
    let Json(status) = super::status(Context(Arc::clone(&shared))).await.unwrap();
    assert!(!status.linearizable);
    let Json(local) = super::status_local(Context(Arc::clone(&shared))).await.unwrap();
    assert!(!local.linearizable);
}

#[tokio::test]
async fn an_empty_disk_claims_a_number_only_from_the_leader() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let handle = lab.carry(&shared).await;
    let claim = async |number| super::claim_member(asked("s2", &handle, MemberId(number))).await;
    assert!(!claim(9).await.unwrap().0.granted, "its orders name no such member");
    handle.inputs.stop().await.unwrap().await.unwrap();
    handle.ended.clone().wait_for(|ended| *ended).await.unwrap();
    assert_eq!(refused(claim(9).await), (503, "member_busy".to_owned()));
}

/// Every role, and a request of each to every endpoint with a body that never comes.
#[tokio::test]
async fn the_table_of_roles_and_endpoints_holds_before_any_body_is_read() {
    let (_, Endpoints(endpoints)) = super::endpoints();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/roles.txt");
    cohort_base::golden::hold_text(&golden, &Endpoints(endpoints.clone()).to_string());
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let _handle = lab.carry(&shared).await;
    let address = lab.serve_control(&shared).await;
    let peer = Peer::new(Role::Agent, "s1").unwrap();
    let target = Target { address, peer, alpn: Alpn::Control };
    for role in Role::ALL {
        let client = Client::new(lab.slot_of(&Peer::new(role, "s2").unwrap()));
        for Endpoint { method, path, who } in &endpoints {
            let admitted = who.admits(Some(role));
            let what = format!("{role} {method} {path}");
            let call = Call::new(method.clone(), path.as_str());
            let answer = if admitted {
                // No message: enough to be let in.
                client.call(&target, call.bytes("x")).await
            } else {
                let never = futures_util::stream::pending();
                client.upload(&target, call, Some(1000), never).await
            };
            let status = answer.map_or_else(|error| error.status(), |_| Some(200));
            assert_eq!(status == Some(403), !admitted, "{what}: {status:?}");
        }
    }
}
