use std::collections::BTreeMap;
use std::sync::Arc;

use axum::routing::post;
use axum::{Json, Router};
use cohort_core::Rejection;
use cohort_core::ids::{Generation, Incarnation, MemberId};
use cohort_core::orders::{Fence, MemberAddress, Orders};
use cohort_core::report::{Outcome, Report};
use cohort_identity::{Alpn, UnixTime};
use cohort_server::asking::Received;
use cohort_wire::agent::{CommandAnswer, REPORT, SignedSubmission, Submission, ToGroup};
use cohort_wire::http::Handler;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::Reporter;
use crate::shared::Shared;
use crate::testing::{GROUP, Lab, server, web};

type Answers = Vec<CommandAnswer>;

/// A member `s1` whose answers are the test's: what it was sent, and the way to answer.
struct Member {
    lab: Lab,
    shared: Arc<Shared>,
    sent: UnboundedReceiver<Vec<(Incarnation, Report)>>,
    answers: UnboundedSender<Answers>,
}

async fn member() -> Member {
    let lab = Lab::new().await;
    let shared = lab.agent("s2", None).await;
    let (received, sent) = unbounded_channel();
    let (answers, answer) = unbounded_channel::<Answers>();
    let answer = Arc::new(tokio::sync::Mutex::new(answer));
    let roots = lab.slot("s1");
    let report = async move |Json(message): Json<ToGroup<Vec<SignedSubmission>>>| {
        let verified = message.body.iter().map(|signed| {
            let (identity, group) = (roots.current(), GROUP.parse().unwrap());
            match signed.verify(identity.roots(), &group, UnixTime::now()).unwrap() {
                (_, Submission::Report { incarnation, report, .. }) => (incarnation, report),
                other => panic!("{other:?}"),
            }
        });
        received.send(verified.collect()).unwrap();
        Json(answer.lock().await.recv().await.unwrap())
    };
    let handler = Handler::Http(Router::new().route(REPORT, post(report)));
    let address = lab.serve("s1", Alpn::Control, handler).await;
    shared.book.lock().learn(&[at("s1", &address, 1)]);
    Member { lab, shared, sent, answers }
}

fn at(name: &str, address: &str, number: u64) -> MemberAddress {
    let (server, address) = (server(name), address.to_owned());
    MemberAddress { server, address, member: MemberId(number) }
}

fn ordered(shared: &Shared) {
    let orders = Orders {
        group: GROUP.parse().unwrap(),
        incarnation: Incarnation(3),
        server: server("s2"),
        apps: Vec::new(),
        member: None,
        members: Vec::new(),
        heard: cohort_core::ids::BootEpoch(0),
    };
    let received =
        Received { orders, asked_ms: 0, valid_ms: 0, leader: None, voters: Default::default() };
    shared.orders.send_replace(Some(Arc::new(received)));
}

fn fence(generation: u64) -> Fence {
    Fence { incarnation: Incarnation(3), generation: Generation(generation) }
}

fn answer(accepted: bool) -> CommandAnswer {
    let rejection = Rejection::OldPlan { generation: Generation(9) };
    CommandAnswer { index: 1, rejection: (!accepted).then_some(rejection) }
}

fn sequences(reports: &[(Incarnation, Report)]) -> Vec<u64> {
    reports.iter().map(|(_, report)| report.sequence).collect()
}

#[tokio::test]
async fn reports_wait_for_the_first_orders_and_go_to_the_incarnation_that_gave_them() {
    let mut member = member().await;
    let reporter = Reporter::spawn(&member.shared);
    reporter.report(&web(), fence(1), 1, Outcome::Applied);
    tokio::task::yield_now().await;
    assert!(member.sent.is_empty(), "no group has spoken");
    ordered(&member.shared);
    let request = member.sent.recv().await.unwrap();
    let (incarnation, Report { server: of, outcome, .. }) = &request[0];
    assert_eq!(*incarnation, Incarnation(3));
    assert_eq!((of, outcome), (&server("s2"), &Outcome::Applied));
}

#[tokio::test]
async fn only_an_accepted_check_is_confirmed_and_a_rejected_report_is_not_sent_again() {
    let mut member = member().await;
    ordered(&member.shared);
    let reporter = Reporter::spawn(&member.shared);
    let mut confirmed = reporter.confirmed();
    reporter.report(&web(), fence(1), 1, Outcome::Checked);
    assert_eq!(sequences(&member.sent.recv().await.unwrap()), [1]);
    member.answers.send(vec![answer(false)]).unwrap();
    confirmed.changed().await.unwrap();
    assert_eq!(*confirmed.borrow_and_update(), BTreeMap::new());
    reporter.report(&web(), fence(2), 1, Outcome::Checked);
    assert_eq!(sequences(&member.sent.recv().await.unwrap()), [2]);
    member.answers.send(vec![answer(true)]).unwrap();
    confirmed.changed().await.unwrap();
    assert_eq!(*confirmed.borrow(), BTreeMap::from([(web(), fence(2))]));
}

#[tokio::test]
async fn the_reports_that_were_not_answered_are_sent_again() {
    let mut member = member().await;
    let reporter = Reporter::spawn(&member.shared);
    reporter.report(&web(), fence(1), 1, Outcome::Applied);
    reporter.report(&web(), fence(1), 1, Outcome::Checked);
    ordered(&member.shared);
    let first = member.sent.recv().await.unwrap();
    assert_eq!(sequences(&first), [1, 2]);
    member.answers.send(vec![answer(true)]).unwrap();
    assert_eq!(sequences(&member.sent.recv().await.unwrap()), [2]);
    assert_eq!(*reporter.confirmed().borrow(), BTreeMap::new());
    member.answers.send(vec![answer(true)]).unwrap();
    reporter.confirmed().wait_for(|confirmed| !confirmed.is_empty()).await.unwrap();
}

#[tokio::test]
async fn a_group_that_takes_no_reports_is_told() {
    let mut member = member().await;
    let whole = member.shared.members();
    member.shared.book.lock().learn(&[at("s1", "127.0.0.1:1", 1)]);
    ordered(&member.shared);
    let reporter = Reporter::spawn(&member.shared);
    reporter.report(&web(), fence(1), 1, Outcome::Applied);
    let told = || member.shared.complaints.no_reports.lock().told();
    while told() == 0 {
        tokio::task::yield_now().await;
    }
    member.shared.book.lock().learn(&whole);
    assert_eq!(sequences(&member.sent.recv().await.unwrap()), [1]);
    member.answers.send(vec![answer(true)]).unwrap();
    while told() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_member_that_does_not_answer_is_followed_by_the_next() {
    let mut member = member().await;
    let known = member.shared.members();
    // The own member comes first, and is away.
    let away = at("s2", "127.0.0.1:1", 2);
    member.shared.book.lock().learn(&[known[0].clone(), away]);
    ordered(&member.shared);
    let reporter = Reporter::spawn(&member.shared);
    reporter.report(&web(), fence(1), 1, Outcome::Applied);
    assert_eq!(sequences(&member.sent.recv().await.unwrap()), [1]);
    drop(member.lab);
}
