use cohort_consensus::RaftId;
use cohort_core::ids::{AppId, BootEpoch, ClockMs, Incarnation, MemberId, ServerId};
use cohort_core::orders::Fence;
use cohort_core::report::{Outcome, Report};
use cohort_core::{Body, Rejection};

use crate::answers::{
    COMMAND_MS_MAX, Committing, FORWARD_MS_MAX, Next, ReportRefused, check_report, for_people,
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
fn people_say_what_people_decide() {
    let person = Body::Resume { app: AppId::new("web").unwrap() };
    let server_says = Body::Report { report: report("s1") };
    let leader_only = Body::AdvanceClock { to: ClockMs(1) };
    assert_eq!([&person, &server_says, &leader_only].map(for_people), [true, false, false]);
}

#[test]
fn the_agent_that_speaks_for_a_server_reports_in_this_incarnation() {
    let own = Incarnation(1);
    let check = |name, life, about| check_report(&state(1), (&server(name), life), about);
    assert_eq!(check("s1", 0, own), Ok(()));
    assert_eq!(check("s1", 7, own), Err(ReportRefused::OtherAgent));
    assert_eq!(check("s1", 0, Incarnation(2)), Err(ReportRefused::OtherIncarnation));
    assert_eq!(check("s9", 0, own), Err(ReportRefused::Stranger));
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
