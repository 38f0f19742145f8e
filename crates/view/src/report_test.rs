use std::collections::{BTreeMap, BTreeSet};

use cohort_core::errand::{Errand, HubFault};
use cohort_core::ids::{AppId, GroupId};
use cohort_core::kill::KillScope;
use cohort_core::phase::PhaseName;
use cohort_core::refused::WhyRefused;
use cohort_core::waiting::WaitingOn;
use cohort_wire::agent::{ErrandStatus, GroupStatus};

use super::{AppReport, Asked, FleetReport, GroupReport, Origin, Picture, Recorded};
use crate::command::Command;
use crate::hint::Hint;
use crate::sample::{app, held, rolling, server, settled, version, waiting};
use crate::waiting::{AWAY_TOLERATED_MS, sentence};

/// The time of all tests, as Unix time in seconds.
pub(crate) const NOW_S: u64 = 1_700_000_000;

pub(crate) fn report(groups: impl IntoIterator<Item = GroupStatus>) -> FleetReport {
    let asked = |status: GroupStatus| Asked {
        group: status.group.clone(),
        status: Ok(status),
        registry: BTreeMap::new(),
        joined: BTreeSet::new(),
    };
    let groups = groups.into_iter().map(asked).collect();
    FleetReport::of(
        Picture { origin: Origin::sound_hub(), apps: BTreeSet::from([app()]), groups },
        NOW_S,
    )
}

fn judged(status: &GroupStatus) -> AppReport {
    AppReport::of(&status.apps[&app()], status, 0)
}

#[test]
fn a_settled_group_is_healthy() {
    let status = settled();
    let app = judged(&status);
    assert!(app.healthy, "{}", app.reason);
    assert_eq!((app.updated, app.in_service, app.servers), (3, 3, 3));
    assert!(app.waiting.is_empty(), "running what the channel names is no wait");
    assert!(report([status]).healthy);
}

#[test]
fn what_a_silent_server_does_is_unknown_and_people_are_told() {
    let mut status = settled();
    lose(&mut status, "web-2", 40_000);
    lose(&mut status, "web-3", 103_000);
    status.servers.get_mut(&server("web-2")).unwrap().contact_age_ms = None;
    let judged = judged(&status);
    assert_eq!((judged.in_service, judged.unknown, judged.healthy), (1, 2, false));
    let report = report([status]);
    assert!(!report.healthy && !report.settled_on(None, Some(&version("1.0.0"))));
    let [problem] = &report.groups[0].problems[..] else { panic!("{:?}", report.groups) };
    for said in [
        "web-2 for at least 40s, web-3 for 1m 43s",
        "1 of 3 voters left, the group has lost its majority",
    ] {
        assert!(problem.sentence.contains(said), "{}", problem.sentence);
    }
    for name in ["web-2", "web-3"] {
        let group = GroupId::new("intel.zone-a").unwrap();
        let remove = Command::GroupRemoveServer { group, server: server(name) };
        let offers = |hint: &Hint| matches!(hint, Hint::Run(_, command) if *command == remove);
        assert!(problem.hints.iter().any(offers), "{:?}", problem.hints);
    }
}

/// Its agent reaches another member; its own is on the wrong side of a cut.
#[test]
fn a_voter_that_the_leader_does_not_hear_is_told_although_its_agent_is_heard() {
    let mut status = settled();
    status.mute.insert(server("web-2"));
    let report = report([status]);
    let [problem] = &report.groups[0].problems[..] else { panic!("{:?}", report.groups) };
    assert!(!report.healthy);
    for said in ["web-2", "2 of 3 voters left, one more loss stops the group"] {
        assert!(problem.sentence.contains(said), "{}", problem.sentence);
    }
}

/// Nobody has heard from the server for this long.
pub(crate) fn lose(status: &mut GroupStatus, name: &str, silent_ms: u64) {
    status.out.insert(server(name));
    let known = status.servers.get_mut(&server(name)).unwrap();
    known.unknown = true;
    (known.silent_ms, known.contact_age_ms) = (Some(silent_ms), Some(silent_ms));
    for app in status.apps.values_mut() {
        app.servers.get_mut(&server(name)).unwrap().unknown = true;
    }
}

#[test]
fn a_silent_server_of_a_group_without_apps_is_told_too() {
    let mut status = settled();
    status.apps.clear();
    lose(&mut status, "web-3", 31_000);
    let report = report([status]);
    assert!(!report.healthy && !report.settled_on(None, None));
    let problems = &report.groups[0].problems;
    assert!(problems.iter().any(|it| it.sentence.contains("web-3 for 31s")), "{problems:?}");
}

#[test]
fn without_a_quorum_nothing_is_known_to_serve() {
    let mut status = settled();
    status.linearizable = false;
    for name in ["web-1", "web-2", "web-3"] {
        lose(&mut status, name, 0);
    }
    assert_eq!((judged(&status).in_service, judged(&status).unknown), (0, 3));
    let report = report([status]);
    assert!(!report.healthy);
    let [problem] = &report.groups[0].problems[..] else { panic!("{:?}", report.groups) };
    assert!(problem.sentence.contains("unknown whether any server serves"));
    let group = GroupId::new("intel.zone-a").unwrap();
    let recover = Command::GroupRecover { group, first_server: server("web-1") };
    assert!(matches!(&problem.hints[1], Hint::Run(_, command) if *command == recover));
}

#[test]
fn everything_that_is_wrong_makes_it_unhealthy_and_is_named() {
    let rolling = judged(&rolling());
    assert_eq!((rolling.healthy, rolling.updated), (false, 2));
    let held = judged(&held());
    assert_eq!(
        (held.healthy, held.reason.as_str()),
        (false, "check failed on web-1: http: status 500")
    );

    let mut status = settled();
    status.apps.get_mut(&app()).unwrap().servers.remove(&server("web-2"));
    assert!(judged(&status).reason.starts_with("web-2 "));

    let mut status = settled();
    let here = status.apps.get_mut(&app()).unwrap();
    here.servers.get_mut(&server("web-2")).unwrap().running = Some(version("0.9.0"));
    let reason = judged(&status).reason;
    assert!(reason.starts_with("web-2 ") && reason.contains("0.9.0"), "{reason}");

    let mut status = settled();
    let groups = vec![GroupId::new("intel.zone-b").unwrap()];
    let stage = WaitingOn::StageBefore { version: version("1.1.0"), groups };
    status.apps.get_mut(&app()).unwrap().waiting = vec![waiting(stage.clone(), 0)];
    assert_eq!(judged(&status).reason, sentence(&stage));

    let mut status = settled();
    status.apps.get_mut(&app()).unwrap().state = PhaseName::Empty;
    assert!(!judged(&status).healthy);
}

#[test]
fn what_keeps_a_release_or_a_policy_away_is_not_healthy_once_it_lasts() {
    let unreachable = || WhyRefused::Unreachable { file: "timestamp.json".into() };
    let stale = |why: WhyRefused| WaitingOn::NotRefreshed(why.into());
    let minutes = |minutes: u64| minutes * 60_000;
    for (on, for_ms, healthy) in [
        (stale(unreachable()), minutes(1), true),
        (stale(unreachable()), AWAY_TOLERATED_MS - 1, true),
        (stale(unreachable()), AWAY_TOLERATED_MS, false),
        (stale(WhyRefused::NoMirror), 0, false),
        // Another release is offered, and cannot start.
        (WaitingOn::RegistryAway, 0, false),
    ] {
        let mut status = settled();
        status.apps.get_mut(&app()).unwrap().waiting = vec![waiting(on.clone(), for_ms)];
        let report = report([status]);
        let judged = &report.groups[0].apps[&app()];
        let settles = report.settled_on(None, None);
        assert_eq!((judged.healthy, settles), (healthy, healthy), "{on:?} for {for_ms} ms");
        assert_eq!(judged.waiting, [sentence(&on)], "it is told from the start");
        assert_eq!(judged.reason.is_empty(), healthy);
    }
}

#[test]
fn the_groups_own_problems_come_with_what_to_do() {
    let mut status = settled();
    status.linearizable = false;
    status.killed = Some("bad night".to_owned());
    let seen = report([status]);
    assert!(!seen.healthy);
    let problems = &seen.groups[0].problems;
    assert_eq!(problems.len(), 2);
    assert!(problems[0].sentence.contains("web-1"), "who answered: {}", problems[0].sentence);
    assert!(problems[1].sentence.contains("bad night"), "{}", problems[1].sentence);
    assert_eq!(problems[1].hints, [Hint::run(Command::KillStatus)]);
    let missing = Asked {
        group: GroupId::new("amd.zone-a").unwrap(),
        status: Ok(settled()),
        registry: BTreeMap::new(),
        joined: BTreeSet::from([server("web-1"), server("web-8"), server("web-9")]),
    };
    let expected = BTreeSet::from([AppId::new("api").unwrap()]);
    let problems = GroupReport::of(missing, &expected, NOW_S).problems;
    assert!(problems[0].sentence.contains("api") && problems[0].hints.is_empty());
    assert!(problems[1].sentence.contains("web-8 and 1 more"), "{}", problems[1].sentence);
}

#[test]
fn waiting_for_a_version_ends_when_every_group_runs_it() {
    let seen = report([settled()]);
    assert!(seen.settled_on(None, None));
    assert!(seen.settled_on(Some(&app()), Some(&version("1.0.0"))));
    assert!(!seen.settled_on(Some(&app()), Some(&version("1.1.0"))));
    let other = AppId::new("api").unwrap();
    assert!(!seen.settled_on(Some(&other), Some(&version("1.0.0"))), "nobody runs that app");
    assert!(!seen.settled_on(Some(&other), None), "nobody has that app");
    assert!(!report([settled(), rolling()]).settled_on(None, None));
    assert!(!report([]).settled_on(None, None), "a fleet without groups is not healthy");
}

#[test]
fn a_held_group_has_waited_for_as_long_as_the_registry_knows() {
    let seen = |state: PhaseName| {
        let recorded = Recorded { state, since: NOW_S - 7200 };
        let asked = Asked {
            group: GroupId::new("intel.zone-a").unwrap(),
            status: Ok(held()),
            registry: BTreeMap::from([(app(), recorded)]),
            joined: BTreeSet::new(),
        };
        GroupReport::of(asked, &BTreeSet::new(), NOW_S)
    };
    let group = seen(PhaseName::Held);
    assert_eq!(group.apps[&app()].for_ms, 7_200_000);
    let waiting = &group.status.unwrap().apps[&app()].waiting;
    assert_eq!(waiting[0].for_ms, 7_200_000, "for a person");
    assert_eq!(waiting[1].for_ms, 75_000, "a debt is measured by the group's own clock");
    assert_eq!(
        seen(PhaseName::Running).apps[&app()].for_ms,
        90_000,
        "a record of another state says nothing"
    );
}

#[test]
fn what_the_hub_refuses_is_a_problem_and_a_hub_that_is_away_becomes_one() {
    let failing_for = |errand, why, for_ms| {
        let mut status = settled();
        status.errands = vec![ErrandStatus { errand, why, for_ms }];
        let problems = report([status.clone()]).groups.remove(0).problems;
        (report([status]).healthy, problems)
    };
    let failing = |errand, why| failing_for(errand, why, 75_000);
    let text = "agent `web-1` was removed by an operator".to_owned();
    let away = HubFault::Unreachable { text: text.clone() };
    assert_eq!(failing(Errand::WriteRecords, away.clone()), (true, Vec::new()));
    let (healthy, problems) = failing_for(Errand::ReadRegistry, away, AWAY_TOLERATED_MS);
    assert!(!healthy && problems[0].hints[0].to_string().contains("web-1"), "{problems:?}");
    let (healthy, problems) = failing(Errand::WriteRecords, HubFault::Refused { text });
    assert!(!healthy && !problems[0].hints.is_empty(), "{problems:?}");
    let sentence = &problems[0].sentence;
    assert!(sentence.contains("1m 15s") && sentence.contains("removed by"), "{sentence}");
    let at = cohort_core::ids::Revision(7);
    let read = || Errand::ReadPolicy { app: "db".parse().unwrap() };
    let (healthy, problems) = failing(read(), HubFault::Removed { at });
    assert!(!healthy && problems[0].sentence.contains("has removed the app since"), "{problems:?}");
    let (healthy, problems) = failing(read(), HubFault::Unproven { text: "forged".to_owned() });
    assert!(!healthy && problems[0].hints.len() == 2, "{problems:?}");
    let kill = Errand::ReadKill { scope: KillScope::Fleet };
    let (healthy, problems) = failing(kill, HubFault::Damaged { text: "expected `,`".to_owned() });
    let off = Command::KillOff { scope: None };
    let replaces = |hint: &Hint| matches!(hint, Hint::Run(_, command) if *command == off);
    assert!(!healthy && problems[0].hints.iter().any(replaces), "{problems:?}");
    assert!(problems[0].sentence.contains("fleet"), "{problems:?}");
    let unknown = HubFault::Damaged { text: "unknown variant `new`".to_owned() };
    let (healthy, problems) = failing(Errand::ReadPolicy { app: app() }, unknown);
    assert!(!healthy && problems[0].sentence.contains("web"), "{problems:?}");
}

#[test]
fn a_fleet_whose_hub_lost_its_registry_is_not_healthy_until_that_is_confirmed() {
    let healthy = |origin| {
        let group = GroupId::new("intel.zone-a").unwrap();
        let (registry, joined) = (BTreeMap::new(), BTreeSet::new());
        let asked = Asked { group, status: Ok(settled()), registry, joined };
        let apps = BTreeSet::from([app()]);
        FleetReport::of(Picture { origin, apps, groups: vec![asked] }, NOW_S).healthy
    };
    let lost = Origin::Hub { restored: true, unreadable: Vec::new() };
    assert!(healthy(Origin::sound_hub()) && !healthy(lost.clone()));
    let warning = lost.warning().unwrap();
    assert!(warning.contains("--confirm-restored"), "{warning}");
    let unreadable = vec!["registry key `x` has no valid record".to_owned()];
    let damaged = Origin::Hub { restored: false, unreadable };
    assert!(damaged.warning().unwrap().contains("key `x`") && !healthy(damaged));
}

#[test]
fn an_old_picture_is_marked() {
    assert_eq!(Origin::sound_hub().warning(), None);
    let origin = Origin::Cache { age_s: 75, because: "hub:7418 refused the connection".to_owned() };
    let warning = origin.warning().unwrap();
    assert!(warning.contains("hub:7418 refused") && warning.contains("1m 15s"), "{warning}");
}
