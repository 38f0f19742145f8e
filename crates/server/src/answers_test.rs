use cohort_consensus::RaftId;
use cohort_core::command::COMMAND_VERSION;
use cohort_core::ids::{
    AppId, BootEpoch, ClockMs, Incarnation, MemberId, REQUEST_ID_BYTES_MAX, RequestId, ServerId,
};
use cohort_core::orders::Fence;
use cohort_core::report::{Outcome, Report};
use cohort_core::{Body, Command, Rejection};

use crate::answers::{
    COMMAND_MS_MAX, Committing, FORWARD_MS_MAX, ForwardRefused, Next, REPORTS_MAX, ReportsRefused,
    check_forward, check_reports, for_members, for_people,
};
use crate::member::Proposed;
use crate::testing::state;

fn server(name: &str) -> ServerId {
    ServerId::new(name).unwrap()
}

fn report(name: &str) -> Report {
    Report {
        server: server(name),
        boot_epoch: BootEpoch(1),
        sequence: 1,
        app: AppId::new("web").unwrap(),
        fence: Fence::default(),
        attempt: 1,
        outcome: Outcome::Checked,
    }
}

#[test]
fn people_say_what_people_decide_and_members_pass_on_no_more_than_servers_say_too() {
    let person = Body::Resume { app: AppId::new("web").unwrap() };
    let server_says = Body::Report { report: report("s1") };
    let leader_only = Body::AdvanceClock { to: ClockMs(1) };
    let all = [&person, &server_says, &leader_only];
    assert_eq!(all.map(for_people), [true, false, false]);
    assert_eq!(all.map(for_members), [true, true, false]);
}

#[test]
fn a_server_reports_for_itself_in_this_incarnation_and_in_bounded_numbers() {
    let own = Incarnation(1);
    let group = state(1);
    let check =
        |reports: &[Report], about| check_reports(&group, (&server("s1"), 0), reports, about);
    assert_eq!(check(&[report("s1")], own), Ok(()));
    assert_eq!(check(&[report("s1"), report("s2")], own), Err(ReportsRefused::Foreign));
    let other = check_reports(&group, (&server("s1"), 7), &[report("s1")], own);
    assert_eq!(other, Err(ReportsRefused::OtherAgent));
    assert_eq!(check(&[report("s1")], Incarnation(2)), Err(ReportsRefused::OtherIncarnation));
    let reason = "x".repeat(5_000);
    let long = Report { outcome: Outcome::Health { in_service: false, reason }, ..report("s1") };
    assert_eq!(check(std::slice::from_ref(&long), own), Err(ReportsRefused::TooLong));
    let by = |version, request: Option<&str>, body| {
        let (actor, request) = ("agent s1".to_owned(), request.map(|id| RequestId(id.to_owned())));
        check_forward(&Command { version, incarnation: own, actor, request, body })
    };
    let forwarded = |version, body| by(version, None, body);
    let body = Body::Report { report: report("s1") };
    for (bytes, expected) in
        [(REQUEST_ID_BYTES_MAX, Ok(())), (REQUEST_ID_BYTES_MAX + 1, Err(ForwardRefused::TooLong))]
    {
        assert_eq!(by(COMMAND_VERSION, Some(&"x".repeat(bytes)), body.clone()), expected);
    }
    assert_eq!(forwarded(COMMAND_VERSION, body.clone()), Ok(()));
    assert_eq!(forwarded(COMMAND_VERSION + 1, body), Err(ForwardRefused::Version));
    let body = Body::Report { report: long };
    assert_eq!(forwarded(COMMAND_VERSION, body), Err(ForwardRefused::TooLong));
    let (app, version) = ("web".parse().unwrap(), "1.0.0".parse().unwrap());
    let body = Body::VerdictWritten { app, version, good: true };
    assert_eq!(forwarded(COMMAND_VERSION, body), Err(ForwardRefused::LeadersOnly));
    let many = vec![report("s1"); REPORTS_MAX + 1];
    assert_eq!(check(&many, own), Err(ReportsRefused::TooMany));
}

#[test]
fn a_command_goes_to_the_leader_and_is_tried_again_until_its_time_is_up() {
    let committing = Committing::begin(1_000, MemberId(1));
    let other = || Proposed::NotLeader { leader: Some(RaftId(2)) };
    let own = || Proposed::NotLeader { leader: Some(RaftId(1)) };
    let forward = |within_ms| Next::Forward { to: MemberId(2), within_ms };
    assert_eq!(committing.proposed(1_200, other()), forward(FORWARD_MS_MAX));
    assert_eq!(committing.proposed(900 + COMMAND_MS_MAX, other()), forward(100));
    // A member that names itself has just lost the leadership: it will know better soon.
    for outcome in [own(), Proposed::NotLeader { leader: None }, Proposed::Busy, Proposed::Unknown]
    {
        assert!(matches!(committing.proposed(1_200, outcome), Next::Again { .. }));
    }
    let end_ms = 1_000 + COMMAND_MS_MAX;
    assert_eq!(committing.proposed(end_ms, other()), Next::GiveUp);
    assert_eq!(committing.failed(end_ms), Next::GiveUp);
}

#[test]
fn a_command_that_is_done_is_answered_with_its_refusal() {
    let committing = Committing::begin(0, MemberId(1));
    for rejection in [None, Some(Rejection::NoServer { server: server("s1") })] {
        let done = Proposed::Done { index: 7, rejection: rejection.clone() };
        assert_eq!(committing.proposed(0, done), Next::Done { index: 7, rejection });
    }
}
