//! Every collection of the replicated state, filled to its limit and beyond; `docs/design/018`
//! lists them.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use cohort_core::Observations;
use cohort_core::command::{Body, Command, Limited, Rejection};
use cohort_core::gate::RegistryView;
use cohort_core::ids::{
    AppId, BootEpoch, ClockMs, Digest, Generation, GroupId, Incarnation, RequestId, Revision,
    ServerId,
};
use cohort_core::orders::{Fence, Purpose};
use cohort_core::policy::{Check, CheckPhase, Duration, Policy, PortAt, Probe, TcpProbe};
use cohort_core::reason::{DebtReason, Reason};
use cohort_core::report::{Outcome, Report};
use cohort_core::state::{
    APPS_MAX, Activation, ActivationStage, Debt, HISTORY_MAX, HOLDS_MAX, Process, REJECTED_MAX,
    REMOVED_MAX, REQUESTS_MAX, SERVER_APPS_MAX, SERVERS_MAX, ServerApp, State,
};
use cohort_core::trial::CHECK_SETS_MAX;
use common::{app, command, group, policy, release, server};

/// As in `cohort-consensus`: larger snapshots are not taken.
const SNAPSHOT_BYTES_MAX: usize = 15 * 1024 * 1024;

fn full<T>(what: Limited, max: usize) -> Result<T, Rejection> {
    Err(Rejection::Limit { what, max: max as u64 })
}

fn add(state: &mut State, n: usize) -> Result<(), Rejection> {
    let server = ServerId::new(format!("server-{n:04}")).unwrap();
    let (address, rack) = (format!("10.0.{}.{}:7417", n / 256, n % 256), None);
    let process = Process { life: u64::MAX, host: "2001:db8:1234:5678:9abc:def0:1234:5678".into() };
    state.apply(&command(None, Body::AddServer { server, address, rack, process })).map(|_| ())
}

fn apply_policy(state: &mut State, n: usize) -> Result<(), Rejection> {
    let policy = Policy { app: AppId::new(format!("app-{n}")).unwrap(), ..policy(1, 0) };
    state
        .apply(&command(
            None,
            Body::SetPolicy { policy, revision: Revision(1), proof: Default::default() },
        ))
        .map(|_| ())
}

/// Adds an app to a group without servers and removes it.
fn add_and_remove(state: &mut State, n: usize, revision: u64) {
    let app = AppId::new(format!("app-{n}")).unwrap();
    let policy = Policy { app: app.clone(), ..policy(1, 0) };
    let set = Body::SetPolicy { policy, revision: Revision(revision), proof: Default::default() };
    state.apply(&command(None, set)).unwrap();
    let remove = Body::RemoveApp {
        app: app.clone(),
        revision: Revision(revision + 1),
        proof: Default::default(),
    };
    state.apply(&command(None, remove)).unwrap();
    let record = state.apps[&app].record;
    state.apply(&command(None, Body::RecordWritten { app, record })).unwrap();
}

#[test]
fn a_removed_app_comes_back_only_with_a_newer_policy_and_the_oldest_removal_is_forgotten() {
    let mut state = State::new(GroupId::new("web.zone-a").unwrap(), Incarnation(1));
    add_and_remove(&mut state, 0, 1);
    // A registry from a backup has the policy, and not the removal.
    let policy = Policy { app: AppId::new("app-0").unwrap(), ..policy(1, 0) };
    let offered = |revision| RegistryView {
        policies: BTreeMap::from([(policy.app.clone(), (Revision(revision), policy.clone()))]),
        ..RegistryView::default()
    };
    for (revision, taken) in [(1, false), (2, false), (3, true)] {
        let (leader, registry) = (Some(server(0)), Some(offered(revision)));
        let seen = Observations { leader, registry, ..Observations::default() };
        let planned = cohort_core::plan(&state, &seen).commands;
        assert_eq!(planned.iter().any(|body| matches!(body, Body::SetPolicy { .. })), taken);
        let set = Body::SetPolicy {
            policy: policy.clone(),
            revision: Revision(revision),
            proof: Default::default(),
        };
        state.apply(&command(None, set)).unwrap();
        assert_eq!((state.apps.len(), state.removed.len()), if taken { (1, 0) } else { (0, 1) });
    }
    for n in 1..=REMOVED_MAX + 1 {
        add_and_remove(&mut state, n, 10 * n as u64);
        state.check().unwrap();
    }
    let oldest = AppId::new("app-1").unwrap();
    assert!(state.removed.len() == REMOVED_MAX && !state.removed.contains_key(&oldest));
}

#[test]
fn a_group_refuses_the_server_and_the_app_that_are_too_many() {
    let mut state = group();
    (1..APPS_MAX).for_each(|n| apply_policy(&mut state, n).unwrap());
    assert_eq!(apply_policy(&mut state, APPS_MAX), full(Limited::Apps, APPS_MAX));
    let fit = SERVER_APPS_MAX / APPS_MAX;
    (state.servers.len()..fit).for_each(|n| add(&mut state, n).unwrap());
    assert_eq!(add(&mut state, fit), full(Limited::ServerApps, SERVER_APPS_MAX));

    let mut state = group();
    (state.servers.len()..SERVERS_MAX).for_each(|n| add(&mut state, n).unwrap());
    assert_eq!(add(&mut state, SERVERS_MAX), full(Limited::Servers, SERVERS_MAX));
    let fit = SERVER_APPS_MAX / SERVERS_MAX;
    (1..fit).for_each(|n| apply_policy(&mut state, n).unwrap());
    assert_eq!(apply_policy(&mut state, fit), full(Limited::ServerApps, SERVER_APPS_MAX));
    state.check().unwrap();
}

#[test]
fn a_group_remembers_no_more_than_its_limits() {
    let mut state = group();
    for n in 0..=REQUESTS_MAX {
        let request = Some(RequestId(format!("request-{n}")));
        let command = Command { request, ..command(None, Body::Resume { app: app() }) };
        state.apply(&command).unwrap_err();
    }
    assert_eq!(state.requests.len(), REQUESTS_MAX);

    let revision = state.apps[&app()].revision;
    for n in 0..=u8::try_from(HISTORY_MAX).unwrap() {
        let (lead, release) = (server(0), release(n));
        let start = Body::StartRollout { app: app(), release, revision, lead };
        state.apply(&command(None, start)).unwrap();
        let abort = Body::Abort { app: app(), reason: String::new() };
        state.apply(&command(None, abort)).unwrap();
    }
    let known = &state.apps[&app()];
    assert_eq!((known.history.len(), known.rejected.len()), (HISTORY_MAX, REJECTED_MAX));

    for n in 0..=u8::try_from(HOLDS_MAX).unwrap() {
        let report = Report {
            server: server(0),
            boot_epoch: BootEpoch(1),
            sequence: u64::from(n) + 1,
            app: app(),
            fence: Fence::default(),
            attempt: 1,
            outcome: Outcome::Holds { artifact: release(n).artifact },
        };
        state.apply(&command(None, Body::Report { report })).unwrap();
    }
    assert_eq!(state.apps[&app()].servers[&server(0)].holds.len(), HOLDS_MAX);

    // Each set of checks stays in use by one server.
    let port = |n: u64| NonZeroU16::new(u16::try_from(n).ok()?).map(PortAt::Number);
    let checks = |n: u64| Check {
        probe: Probe::Tcp(TcpProbe { port: port(n), ..TcpProbe::default() }),
        interval: Duration::from_secs(1),
        timeout: Duration::from_secs(1),
        phase: vec![CheckPhase::Running],
    };
    for n in 0..CHECK_SETS_MAX + 3 {
        add(&mut state, 100 + n).unwrap();
        let revision = Revision(10 + n as u64);
        let known = state.apps.get_mut(&app()).unwrap();
        let newest = known.check_sets.last().unwrap().revision;
        let here = known.servers.values_mut().last().unwrap();
        (here.running, here.checks) = (Some(release(1)), newest);
        let policy = Policy { checks: vec![checks(n as u64)], ..policy(1, 0) };
        state
            .apply(&command(None, Body::SetPolicy { policy, revision, proof: Default::default() }))
            .unwrap();
    }
    assert_eq!(state.apps[&app()].check_sets.len(), CHECK_SETS_MAX);
    state.check().unwrap();
}

/// An app on a server mid-rollout: it holds what it can, is being changed, and owes.
fn busy(n: usize) -> ServerApp {
    let digest = |n: usize| Digest::new(format!("{n:064x}")).unwrap();
    let fence = Fence { incarnation: Incarnation(1), generation: Generation(7) };
    let text = "http://127.0.0.1:8080/healthz: status 500, expected 200".to_owned();
    ServerApp {
        found: true,
        running: Some(release(1)),
        in_service: true,
        holds: (0..HOLDS_MAX).map(|k| digest(n + k)).collect(),
        activated: Generation(7),
        activation: n.is_multiple_of(4).then(|| Activation {
            fence,
            release: Some(release(2)),
            before: Some(release(1)),
            purpose: Purpose::Wave,
            costs: true,
            void: false,
            granted: ClockMs(1_795_244_055_000),
            stage: ActivationStage::Applied { at: ClockMs(1_795_244_055_000) },
        }),
        debt: (n % 4 == 1).then_some(Debt {
            since: ClockMs(1_795_244_055_000),
            reason: DebtReason::Failed { text },
            tries: 3,
        }),
        ..ServerApp::default()
    }
}

#[test]
fn a_full_group_fits_into_a_snapshot() {
    for (servers, apps) in [(SERVERS_MAX, SERVER_APPS_MAX / SERVERS_MAX), (375, APPS_MAX)] {
        let mut state = group();
        (state.servers.len()..servers).for_each(|n| add(&mut state, n).unwrap());
        (1..apps).for_each(|n| apply_policy(&mut state, n).unwrap());
        let revision = Revision(1);
        let apps: Vec<AppId> = state.apps.keys().cloned().collect();
        for app in apps {
            let start = |n| Body::StartRollout {
                app: app.clone(),
                release: release(n),
                revision,
                lead: server(0),
            };
            for n in 0..=u8::try_from(HISTORY_MAX).unwrap() {
                let abort = Body::Abort { app: app.clone(), reason: "a bad night".into() };
                state.apply(&command(None, start(n))).unwrap();
                state.apply(&command(None, abort)).unwrap();
            }
            let known = state.apps.get_mut(&app).unwrap();
            known.generation = Generation(7);
            known.servers.values_mut().zip(0..).for_each(|(here, n)| **here = busy(n));
        }
        state.check().unwrap();
        let bytes = serde_json::to_vec(&state).unwrap().len();
        assert!(bytes < SNAPSHOT_BYTES_MAX, "{servers} servers: {bytes} bytes");
    }
}

#[test]
fn a_reason_that_is_passed_on_is_short() {
    let servers: Vec<ServerId> = (0..100).map(server).collect();
    let Reason::ServersLost { servers } = (Reason::ServersLost { servers }).shortened() else {
        panic!("another reason")
    };
    assert_eq!(servers.len(), Reason::SERVERS_NAMED_MAX);
}

/// An agent's introduction was on its way while its server was removed.
#[test]
fn a_server_that_was_removed_does_not_come_back_by_moving() {
    let mut state = group();
    let apply = |state: &mut State, body| state.apply(&command(None, body)).map(|_| ());
    let moves = |host: &str| {
        let process = Process { life: 2, host: host.to_owned() };
        Body::MoveServer { server: server(1), address: format!("{host}:7417"), process }
    };
    assert_eq!(apply(&mut state, moves("10.0.1.1")), Ok(()));
    assert_eq!(state.servers[&server(1)].address, "10.0.1.1:7417");
    assert_eq!(apply(&mut state, Body::RemoveServer { server: server(1) }), Ok(()));
    let refused = Err(Rejection::NoServer { server: server(1) });
    assert_eq!(apply(&mut state, moves("10.0.1.2")), refused);
    assert!(!state.servers.contains_key(&server(1)));
}
