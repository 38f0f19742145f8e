use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use axum::routing::post;
use axum::{Json, Router};
use cohort_core::Rejection;
use cohort_core::doing::Doing;
use cohort_core::ids::{Generation, Incarnation, MemberId};
use cohort_core::orders::MemberAddress;
use cohort_core::report::Step;
use cohort_identity::{Alpn, UnixTime};
use cohort_registry::records::{MemberRecord, MembersRecord, SCHEMA, Stamp};
use cohort_registry::typed;
use cohort_server::answers::hash_of;
use cohort_server::asking::{Effect, Input, Question, Whom};
use cohort_wire::agent::{
    CommandAnswer, JOIN_GROUP, ORDERS, OrdersAnswer, OrdersRequest, SignedSubmission, Submission,
    ToGroup, WAIT,
};
use cohort_wire::http::Handler;
use futures_util::FutureExt as _;
use tokio::sync::mpsc::unbounded_channel;

use super::Runner;
use crate::reporter::Reporter;
use crate::shared::Shared;
use crate::testing::{GROUP, Guard, Lab, received, runner as runner_of, server, web, web_runs};

fn runner(shared: &Arc<Shared>) -> Runner {
    runner_of(shared, &Arc::new(Guard::default()))
}

fn member(name: &str, address: &str) -> MemberAddress {
    MemberAddress { server: server(name), address: address.to_owned(), member: MemberId(1) }
}

#[tokio::test]
async fn orders_for_a_new_app_start_it_and_are_in_force() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let reporter = Reporter::spawn(&shared);
    let (runner, mut apps) = (runner(&shared), BTreeSet::new());
    let mut orders = received(vec![web_runs(None)], None);
    orders.orders.members = vec![member("s2", "10.0.0.2:1")];
    orders.leader = Some(server("s2"));
    runner.obey(orders.clone(), &mut apps, &reporter).await.unwrap();
    assert_eq!(apps, BTreeSet::from([web()]));
    assert_eq!(shared.apps_on_disk().unwrap(), apps, "also after a restart");
    assert!(shared.readiness.now().1.contains_key(&web()));
    assert_eq!(shared.orders.borrow().as_deref(), Some(&orders));
    assert_eq!(shared.members(), orders.orders.members);
    assert_eq!(shared.leader().unwrap().server, server("s2"));
    let gone = received(Vec::new(), None);
    runner.obey(gone.clone(), &mut apps, &reporter).await.unwrap();
    assert_eq!(shared.orders.borrow().as_deref(), Some(&gone));
    assert_eq!(shared.members().len(), 1, "orders without members say nothing about them");
}

#[tokio::test]
async fn an_app_that_cannot_be_started_stops_the_agent_and_its_orders_are_not_in_force() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    std::fs::write(lab.path("s1").join("apps"), "not a directory").unwrap();
    let reporter = Reporter::spawn(&shared);
    let orders = received(vec![web_runs(None)], None);
    let obeyed = runner(&shared).obey(orders, &mut BTreeSet::new(), &reporter).await;
    assert!(obeyed.is_err());
    assert!(shared.orders.borrow().is_none());
}

#[tokio::test]
async fn a_server_asks_for_orders_obeys_them_says_where_it_is_and_waits_for_others() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    std::fs::create_dir_all(lab.path("s1").join("apps").join("db")).unwrap();
    let (asked, mut questions) = unbounded_channel();
    let (joined, held) = (asked.clone(), asked.clone());
    let (does, mut done) = unbounded_channel();
    let orders = async move |Json(_): Json<ToGroup<OrdersRequest>>| {
        asked.send(("orders", 0)).unwrap();
        let orders = Some(received(vec![web_runs(None)], None).orders);
        let (orders_valid_ms, kill) = (5_000, Vec::new());
        let (elsewhere, leader, clock_ahead_ms) = (None, None, None);
        Json(OrdersAnswer {
            orders,
            elsewhere,
            orders_valid_ms,
            kill,
            leader,
            voters: Default::default(),
            clock_ahead_ms,
            revocations: 0,
        })
    };
    let join = async move |Json(_): Json<ToGroup<SignedSubmission>>| {
        joined.send(("join", 0)).unwrap();
        Json(CommandAnswer { index: 1, rejection: None })
    };
    let wait = async move |Json(message): Json<ToGroup<OrdersRequest>>| {
        held.send(("wait", message.body.known)).unwrap();
        let step = message.body.doing.get(&web()).map(Doing::step);
        does.send(step).unwrap();
        std::future::pending::<Json<OrdersAnswer>>().await
    };
    let router = Router::new().route(ORDERS, post(orders)).route(JOIN_GROUP, post(join));
    let router = router.route(WAIT, post(wait));
    let address = lab.serve("s2", Alpn::Control, Handler::Http(router)).await;
    shared.book.lock().learn(&[member("s2", &address)]);
    let running = tokio::spawn(runner(&shared).run());
    let known = hash_of(Some(&received(vec![web_runs(None)], None).orders));
    for expected in [("orders", 0), ("join", 0), ("wait", known)] {
        assert_eq!(questions.recv().await, Some(expected));
    }
    shared.does(&web(), Some(Doing::Step { step: Step::Switch }));
    assert_eq!(questions.recv().await, Some(("wait", 0)), "the step is told when it starts");
    let told = [done.recv().await.unwrap(), done.recv().await.unwrap()];
    assert_eq!(told, [None, Some(Step::Switch)], "the step that has begun");
    assert!(shared.orders.borrow().as_ref().unwrap().of(&web()).is_some());
    let apps: Vec<String> = shared.readiness.now().1.keys().map(ToString::to_string).collect();
    assert!(apps.contains(&"web".to_owned()), "ordered");
    running.abort();
}

#[tokio::test]
async fn only_a_step_that_starts_or_ends_is_told_before_the_next_question() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let does = |step: Option<Step>| {
        shared.does(&web(), step.map(|step| Doing::Step { step }));
        shared.step_changed.notified().now_or_never().is_some()
    };
    assert!(does(Some(Step::Prepare)));
    assert!(!does(Some(Step::Prepare)), "no other step");
    assert!(does(Some(Step::Drain)));
    assert!(does(None));
    assert!(!does(None));
}

#[tokio::test]
async fn a_group_that_gives_no_orders_is_told_after_two_rounds_and_a_wrong_clock_at_once() {
    let lab = Lab::new().await;
    let shared = lab.agent("s1", None).await;
    let away = "127.0.0.1:1";
    let other = MemberAddress { member: MemberId(2), ..member("s3", away) };
    shared.book.lock().learn(&[member("s2", away), other]);
    let ask = async |address: &str| {
        let whom = Whom { server: server("s2"), address: address.to_owned() };
        let input = runner(&shared).perform(Effect::Ask(whom, Question::Orders)).await;
        (input != Input::NoAnswer, shared.complaints.no_orders.lock().told())
    };
    for told in [0, 0, 0, 0, 1, 1] {
        assert_eq!(ask(away).await, (false, told));
    }
    let stranger = lab.serve("s3", Alpn::Control, Handler::Http(Router::new())).await;
    assert_eq!(ask(&stranger).await, (false, 2), "its certificate is another cause");
    for (clock_ahead_ms, off) in
        [(None, false), (Some(-90_000), true), (None, true), (Some(0), false)]
    {
        let orders = async move || {
            Json(OrdersAnswer {
                orders: None,
                elsewhere: None,
                orders_valid_ms: 0,
                kill: Vec::new(),
                leader: None,
                voters: Default::default(),
                clock_ahead_ms,
                revocations: 0,
            })
        };
        let handler = Handler::Http(Router::new().route(ORDERS, post(orders)));
        let address = lab.serve("s2", Alpn::Control, handler).await;
        assert_eq!(ask(&address).await, (true, 0), "it answers again");
        assert_eq!(shared.clock_off.load(Ordering::Relaxed), off, "{clock_ahead_ms:?}");
    }
}

#[tokio::test]
async fn only_a_group_that_accepted_the_server_has_taken_it_in() {
    let lab = Lab::new().await;
    let mut shared = lab.agent("s9", None).await;
    let roots = lab.slot("s1");
    let join = async move |Json(message): Json<ToGroup<SignedSubmission>>| {
        let (identity, group) = (roots.current(), GROUP.parse().unwrap());
        let verified = message.body.verify(identity.roots(), &group, UnixTime::now());
        let (_, Submission::Join(request)) = verified.unwrap() else { panic!("no join") };
        // Refused until the server says where it is.
        let rejection = Rejection::OldPlan { generation: Generation(1) };
        let known = request.address.contains(":7417");
        Json(CommandAnswer { index: 1, rejection: (!known).then_some(rejection) })
    };
    let handler = Handler::Http(Router::new().route(JOIN_GROUP, post(join)));
    let address = lab.serve("s1", Alpn::Control, handler).await;
    let ask = async |shared: &Arc<Shared>, address: &str| {
        let whom = Whom { server: server("s1"), address: address.to_owned() };
        runner(shared).perform(Effect::Ask(whom, Question::Join)).await
    };
    assert_eq!(ask(&shared, &address).await, Input::Joined(true));
    assert_eq!(ask(&shared, "127.0.0.1:1").await, Input::Joined(false), "nobody answers");
    Arc::get_mut(&mut shared).unwrap().config.advertise = Some("10.0.0.9:1".to_owned());
    assert_eq!(ask(&shared, &address).await, Input::Joined(false), "refused");
}

#[tokio::test]
async fn the_registry_says_where_the_members_are_and_its_silence_changes_nothing() {
    let lab = Lab::new().await;
    let registry = lab.registry();
    let shared = lab.agent_over("s9", Arc::clone(&registry) as _).await;
    let known = [member("s1", "10.0.0.1:1")];
    shared.book.lock().learn(&known);
    let ask = async |shared| runner(shared).perform(Effect::AskRegistry { tell: true }).await;
    assert_eq!(ask(&shared).await, Input::RegistryAsked);
    assert_eq!(shared.members(), known, "the registry has none");
    let moved = MemberRecord {
        server: server("s1"),
        address: "10.0.0.7:1".to_owned(),
        member: MemberId(1),
        voter: true,
    };
    let record = MembersRecord {
        schema: SCHEMA,
        group: GROUP.parse().unwrap(),
        stamp: Stamp { incarnation: Incarnation(1), term: 1, index: 1 },
        members: vec![moved],
    };
    let _ = typed::write_members(&*registry, &record).await.unwrap();
    assert_eq!(ask(&shared).await, Input::RegistryAsked);
    assert_eq!(shared.members(), [member("s1", "10.0.0.7:1")]);
    let away = lab.agent("s8", None).await;
    away.book.lock().learn(&known);
    assert_eq!(ask(&away).await, Input::RegistryAsked, "a hub that nobody runs");
    assert_eq!(away.members(), known);
    assert_eq!(away.complaints.no_members.lock().told(), 0);
    assert_eq!(ask(&away).await, Input::RegistryAsked);
    assert_eq!(away.complaints.no_members.lock().told(), 1, "it lasts");
}
