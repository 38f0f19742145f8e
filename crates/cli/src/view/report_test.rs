use std::collections::{BTreeMap, BTreeSet};

use cohort_core::ids::{AppId, GroupId};
use cohort_core::phase::PhaseName;
use cohort_core::waiting::WaitingOn;
use cohort_wire::agent::GroupStatus;

use super::{AppReport, FleetReport, GroupReport};
use crate::clock::unix_now;
use crate::fleet::{Origin, Recorded};
use crate::group::{Asked, Picture};
use crate::view::sample::{app, held, rolling, server, settled, version, waiting};

pub(crate) fn report(groups: impl IntoIterator<Item = GroupStatus>) -> FleetReport {
    let asked = |status: GroupStatus| Asked {
        group: status.group.clone(),
        status: Ok(status),
        registry: BTreeMap::new(),
        joined: BTreeSet::new(),
    };
    let groups = groups.into_iter().map(asked).collect();
    FleetReport::of(Picture { origin: Origin::Hub, apps: BTreeSet::from([app()]), groups })
}

fn sentences(problems: &[super::Problem]) -> Vec<&str> {
    problems.iter().map(|problem| problem.sentence.as_str()).collect()
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
    assert!(app.waiting.is_empty(), "to run what the channel names is no wait");
    assert!(report([status]).healthy);
}

#[test]
fn everything_that_is_wrong_is_said() {
    let rolling = judged(&rolling());
    assert_eq!((rolling.healthy, rolling.updated), (false, 2));
    assert_eq!(rolling.reason, "a rollout is going on");
    let held = judged(&held());
    assert_eq!(held.reason, "check failed on web-1: http: status 500");

    let mut status = settled();
    status.apps.get_mut(&app()).unwrap().servers.remove(&server("web-2"));
    assert_eq!(judged(&status).reason, "web-2 has not reported yet");

    let mut status = settled();
    let here = status.apps.get_mut(&app()).unwrap();
    here.servers.get_mut(&server("web-2")).unwrap().running = Some(version("0.9.0"));
    assert_eq!(judged(&status).reason, "web-2 runs 0.9.0");

    let mut status = settled();
    let groups = vec![GroupId::new("intel.zone-b").unwrap()];
    let stage = WaitingOn::StageBefore { version: version("1.1.0"), groups };
    status.apps.get_mut(&app()).unwrap().waiting = vec![waiting(stage, 0)];
    assert_eq!(judged(&status).reason, "1.1.0 waits for the verdict of intel.zone-b");

    let mut status = settled();
    status.apps.get_mut(&app()).unwrap().state = PhaseName::Empty;
    assert_eq!(judged(&status).reason, "nothing runs yet");
}

#[test]
fn the_groups_own_problems_come_first() {
    let mut status = settled();
    status.linearizable = false;
    status.killed = Some("bad night".to_owned());
    let seen = report([status]);
    assert!(!seen.healthy);
    assert_eq!(
        sentences(&seen.groups[0].problems),
        [
            "no majority of voters answers; web-1 tells what it last knew",
            "the kill switch is on: bad night",
        ]
    );
    let missing = Asked {
        group: GroupId::new("amd.zone-a").unwrap(),
        status: Ok(settled()),
        registry: BTreeMap::new(),
        joined: BTreeSet::from([server("web-1"), server("web-8"), server("web-9")]),
    };
    let expected = BTreeSet::from([AppId::new("api").unwrap()]);
    assert_eq!(
        sentences(&GroupReport::of(missing, &expected).problems),
        [
            "the group has not heard of app api yet",
            "web-8 and 1 more joined the fleet, but the group does not know it yet",
        ]
    );
}

#[test]
fn waiting_for_a_version_ends_when_every_group_runs_it() {
    let seen = report([settled()]);
    assert!(seen.settled_on(None, None));
    assert!(seen.settled_on(Some(&app()), Some(&version("1.0.0"))));
    assert!(!seen.settled_on(Some(&app()), Some(&version("1.1.0"))));
    let other = AppId::new("api").unwrap();
    assert!(!seen.settled_on(Some(&other), Some(&version("1.0.0"))), "nobody runs that app");
    assert!(!report([settled(), rolling()]).settled_on(None, None));
    assert!(!report([]).settled_on(None, None), "no group at all is not a fleet that is well");
}

#[test]
fn a_held_group_has_waited_for_as_long_as_the_registry_knows() {
    let seen = |state: &str| {
        let recorded = Recorded { state: state.to_owned(), since: unix_now() - 7200 };
        let asked = Asked {
            group: GroupId::new("intel.zone-a").unwrap(),
            status: Ok(held()),
            registry: BTreeMap::from([(app(), recorded)]),
            joined: BTreeSet::new(),
        };
        GroupReport::of(asked, &BTreeSet::new())
    };
    let group = seen("held");
    assert!(group.apps[&app()].for_ms >= 7_200_000);
    let waiting = &group.status.unwrap().apps[&app()].waiting;
    assert!(waiting[0].for_ms >= 7_200_000, "a person is waited for");
    assert_eq!(waiting[1].for_ms, 75_000, "a debt is measured by the group's own clock");
    assert_eq!(seen("running").apps[&app()].for_ms, 90_000, "an older record tells nothing");
}
