//! What happens to a rollout that fails, and which transitions are drawn.
#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeSet;

use cohort_core::command::{Body, Event, Planned, Rejection, WhyNot};
use cohort_core::ids::{AppId, BootEpoch, ClockMs, Revision};
use cohort_core::orders::{Fence, Purpose};
use cohort_core::phase::{Phase, PhaseName, arrow};
use cohort_core::policy::Policy;
use cohort_core::reason::Reason;
use cohort_core::report::{Blame, Outcome, Report, Step};
use cohort_core::state::{Activation, ActivationStage, Ending};
use cohort_core::waiting::WaitingOn;
use cohort_core::{Observations, State, plan};
use common::{app, command, group, policy, release, server};

const REVERT: u8 = 1;
const FREEZE: u8 = 6;
const FORWARD_ONLY: u8 = 7;

/// A rollout of `common::release(number)` that has just started.
fn started(number: u8, auto_revert: bool) -> State {
    let mut state = group();
    let mut policy = policy(1, 0);
    policy.update.auto_revert = auto_revert;
    let revision = Revision(2);
    let (app, release, lead) = (app(), release(number), server(0));
    for body in [
        Body::SetPolicy { policy, revision, proof: Default::default() },
        Body::StartRollout { app, release, revision, lead },
    ] {
        state.apply(&command(None, body)).expect("accepted");
    }
    state
}

fn abort(state: &mut State) -> Option<Rejection> {
    let abort = Body::Abort { app: app(), reason: String::new() };
    state.apply(&command(None, abort)).err()
}

fn fail(state: &mut State) -> Option<Rejection> {
    let generation = state.apps[&app()].generation;
    let step = Planned::Fail { reason: Reason::ServersLost { servers: Vec::new() } };
    state.apply(&command(None, Body::Plan { app: app(), generation, step })).err()
}

fn ending(state: &State) -> Option<Ending> {
    state.apps[&app()].history.last().map(|entry| entry.ending)
}

#[test]
fn a_failed_rollout_stays_or_goes_back_as_release_policy_and_operator_say() {
    for (number, auto_revert, by_person, expected) in [
        (REVERT, true, false, Ending::RolledBack),
        (REVERT, false, false, Ending::HeldInPlace),
        (REVERT, false, true, Ending::RolledBack),
        (FREEZE, true, false, Ending::HeldInPlace),
        (FREEZE, true, true, Ending::RolledBack),
        (FORWARD_ONLY, true, false, Ending::HeldInPlace),
        (FORWARD_ONLY, true, true, Ending::HeldInPlace),
    ] {
        let mut state = started(number, auto_revert);
        assert_eq!(if by_person { abort(&mut state) } else { fail(&mut state) }, None);
        assert_eq!(ending(&state), Some(expected), "{number} {auto_revert} {by_person}");
        assert!(matches!(state.apps[&app()].phase, Phase::Held { .. }));
    }
}

#[test]
fn an_abort_takes_back_what_was_held_in_place_unless_it_is_forward_only() {
    let mut frozen = started(FREEZE, true);
    assert_eq!((fail(&mut frozen), abort(&mut frozen)), (None, None));
    assert_eq!(ending(&frozen), Some(Ending::RolledBack));

    let mut forward_only = started(FORWARD_ONLY, true);
    assert_eq!(fail(&mut forward_only), None);
    let why = WhyNot::ForwardOnly;
    assert_eq!(abort(&mut forward_only), Some(Rejection::NotNow { state: PhaseName::Held, why }));
    assert_eq!(ending(&forward_only), Some(Ending::HeldInPlace));
}

#[test]
fn an_arrow_into_a_rollout_enters_its_first_state() {
    let drawn = |from| PhaseName::ALL.into_iter().filter(move |to| arrow(from, *to).is_some());
    for from in PhaseName::ALL {
        let to: Vec<PhaseName> = drawn(from).collect();
        let ends = [PhaseName::RollingBack, PhaseName::Held];
        if matches!(from, PhaseName::Forward(_)) {
            assert!(to.contains(&PhaseName::MARKED_OLD), "{from}");
            assert!(ends.iter().all(|end| to.contains(end)), "{from}");
        }
        assert_eq!(to.contains(&PhaseName::Removing), from != PhaseName::Removing, "{from}");
        assert!(to.len() <= 6, "{from}: {to:?}");
    }
    assert!(arrow(PhaseName::LEADER_HOLDS, PhaseName::WAVE_BAKED).is_none());
    assert!(arrow(PhaseName::Empty, PhaseName::VERIFIED).is_none());
    assert_eq!(PhaseName::ALL.into_iter().flat_map(drawn).count(), 58);
}

#[test]
fn a_leader_whose_server_has_left_says_so() {
    let leader = server(9);
    let seen = Observations { leader: Some(leader.clone()), ..Observations::default() };
    let waiting = plan(&started(REVERT, true), &seen).waiting;
    assert!(waiting.iter().any(|one| one.on == WaitingOn::LeaderLeft { leader: leader.clone() }));
}

/// A way back stops what runs although its hooks fail; a wave only if the policy says so. The group
/// remembers the failure until the server's next change.
#[test]
fn a_way_back_ignores_hooks_and_says_so() {
    for (purpose, allowed, despite) in [
        (Purpose::Wave, false, false),
        (Purpose::Wave, true, true),
        (Purpose::RollBack, false, true),
        (Purpose::Debt, false, true),
    ] {
        let mut state = started(REVERT, true);
        let web = state.apps.get_mut(&app()).unwrap();
        let Phase::Forward { rollout, .. } = &mut web.phase else { panic!() };
        rollout.policy.update.stop_despite_hooks = allowed;
        let fence = Fence { incarnation: state.incarnation, generation: web.generation };
        web.servers.get_mut(&server(0)).unwrap().activation = Some(Activation {
            fence,
            release: Some(release(REVERT)),
            before: None,
            purpose,
            costs: true,
            void: false,
            granted: ClockMs(0),
            stage: ActivationStage::Granted,
        });
        let orders = state.orders(&server(0), false).unwrap();
        let order = orders.apps[0].activation.as_ref().unwrap();
        assert_eq!(order.stop_despite_hooks, despite, "{purpose:?} {allowed}");
        let mut report = |fence, sequence| {
            let (server, app, boot_epoch) = (server(0), app(), BootEpoch(9));
            let outcome = Outcome::HookIgnored { reason: "exit status 3".to_owned() };
            let report = Report { server, boot_epoch, sequence, app, fence, attempt: 1, outcome };
            let events = state.apply(&command(None, Body::Report { report })).unwrap();
            let told = events.iter().any(|event| matches!(event, Event::HookIgnored { .. }));
            (told, state.apps[&crate::app()].servers[&crate::server(0)].ignored_hook.clone())
        };
        assert_eq!(report(Fence::default(), 1), (false, None), "of another change");
        assert_eq!(report(fence, 2), (true, Some("exit status 3".to_owned())));
        assert_eq!(report(fence, 3), (false, Some("exit status 3".to_owned())), "the same again");
    }
}

/// A server finishes a change that another one has replaced: it serves again, although the group
/// granted the other one as free because it did not.
#[test]
fn a_server_that_finished_an_earlier_change_is_asked_what_it_runs() {
    let mut state = started(REVERT, true);
    let web = state.apps.get_mut(&app()).unwrap();
    let fence = Fence { incarnation: state.incarnation, generation: web.generation };
    let here = web.servers.get_mut(&server(0)).unwrap();
    (here.running, here.in_service) = (Some(release(1)), false);
    here.activation = Some(Activation {
        fence,
        release: Some(release(2)),
        before: Some(release(1)),
        purpose: Purpose::Wave,
        costs: false,
        void: false,
        granted: ClockMs(0),
        stage: ActivationStage::Granted,
    });
    let mut report = |sequence, fence, outcome| {
        let (server, app, boot_epoch) = (server(0), app(), BootEpoch(9));
        let report = Report { server, boot_epoch, sequence, app, fence, attempt: 1, outcome };
        state.apply(&command(None, Body::Report { report })).unwrap();
        let orders = state.orders(&crate::server(0), false).unwrap();
        (orders.apps[0].in_service, orders.apps[0].activation.is_some())
    };
    assert_eq!(report(1, Fence::default(), Outcome::InService), (None, true));
    let found = Outcome::Found { release: Some(release(1)), in_service: true };
    // The grant was free; it is granted again at its actual cost.
    assert_eq!(report(2, Fence::default(), found), (None, false));
    let found = Outcome::Found { release: Some(release(1)), in_service: true };
    assert_eq!(report(3, Fence::default(), found), (Some(true), false));
}

/// A change of one app was free because the server was out for another app's sake, which serves
/// again: the server would leave service for the first, and nobody would have counted it.
#[test]
fn a_change_is_no_longer_free_once_another_app_of_the_server_serves_again() {
    let mut state = started(REVERT, true);
    let db = AppId::new("db").unwrap();
    let policy = Policy { app: db.clone(), ..policy(1, 0) };
    state
        .apply(&command(
            None,
            Body::SetPolicy { policy, revision: Revision(2), proof: Default::default() },
        ))
        .unwrap();
    let fence = Fence { incarnation: state.incarnation, generation: state.apps[&db].generation };
    let here = state.apps.get_mut(&db).unwrap().servers.get_mut(&server(0)).unwrap();
    here.activation = Some(Activation {
        fence,
        release: Some(release(2)),
        before: None,
        purpose: Purpose::Wave,
        costs: false,
        void: false,
        granted: ClockMs(0),
        stage: ActivationStage::Granted,
    });
    let here = state.apps.get_mut(&app()).unwrap().servers.get_mut(&server(0)).unwrap();
    (here.running, here.in_service, here.activation) = (Some(release(1)), false, None);
    let mut ordered = |sequence, in_service| {
        let outcome = Outcome::Health { in_service, reason: String::new() };
        let (server, app, boot_epoch) = (server(0), app(), BootEpoch(9));
        let fence = Fence::default();
        let report = Report { server, boot_epoch, sequence, app, fence, attempt: 1, outcome };
        state.apply(&command(None, Body::Report { report })).unwrap();
        let orders = state.orders(&crate::server(0), false).unwrap();
        orders.apps.iter().find(|orders| orders.app == db).unwrap().activation.is_some()
    };
    assert!(ordered(1, false), "it is out");
    assert!(!ordered(2, true), "it serves: the change has to be granted again at its cost");
}

/// What a server could not stop may still run, and counts as out: the next one waits.
#[test]
fn a_server_that_cannot_stop_a_removed_app_holds_up_the_others() {
    let mut state = group();
    let policy = policy(1, 0);
    let mut take = |body| state.apply(&command(None, body)).map(|_| ());
    take(Body::SetPolicy { policy, revision: Revision(2), proof: Default::default() }).unwrap();
    let report = |n, fence, outcome| {
        let (server, app, boot_epoch) = (server(n), app(), BootEpoch(1));
        let sequence = if fence == Fence::default() { 1 } else { 2 };
        Body::Report {
            report: Report { server, boot_epoch, sequence, app, fence, attempt: 1, outcome },
        }
    };
    for n in 0..3 {
        let found = Outcome::Found { release: Some(release(1)), in_service: true };
        take(report(n, Fence::default(), found)).unwrap();
    }
    take(Body::Adopt { app: app(), release: release(1) }).unwrap();
    take(Body::RemoveApp { app: app(), revision: Revision(3), proof: Default::default() }).unwrap();
    let grant = |state: &State, n| {
        let generation = state.apps[&app()].generation;
        let step =
            Planned::Grant { server: server(n), purpose: Purpose::Debt, voters: BTreeSet::new() };
        Body::Plan { app: app(), generation, step }
    };
    let first = grant(&state, 0);
    state.apply(&command(None, first)).unwrap();
    let fence = state.apps[&app()].servers[&server(0)].activation.as_ref().unwrap().fence;
    let (blame, step) = (Blame::Release, Step::Stop);
    let (reason, output) = ("exit status 3".to_owned(), String::new());
    let failed = report(0, fence, Outcome::Failed { blame, step, reason, output });
    state.apply(&command(None, failed)).unwrap();
    assert_eq!(state.apps[&app()].servers[&server(0)].running, Some(release(1)));
    let next = grant(&state, 1);
    let refused = state.apply(&command(None, next)).unwrap_err();
    assert_eq!(refused, Rejection::Capacity { out: 1, max: 1 });
}
