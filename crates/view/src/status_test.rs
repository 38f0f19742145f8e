use std::collections::{BTreeMap, BTreeSet};

use cohort_core::ids::GroupId;
use cohort_core::phase::PhaseName;

use super::{fleet, group};
use crate::report::report_test::NOW_S;
use crate::report::{Asked, FleetReport, GroupReport, Origin, Picture, Recorded};
use crate::sample::{app, held, moving, rolling, settled};
use crate::table::Look;
use crate::{groups, transfer};

fn picture() -> FleetReport {
    let asked = |name: &str, status| Asked {
        group: GroupId::new(name).unwrap(),
        status,
        registry: BTreeMap::from([(app(), Recorded { state: PhaseName::Running, since: 0 })]),
        joined: BTreeSet::new(),
    };
    let away = "none of 3 agents answered: 10.0.0.1:7417 refused the connection".to_owned();
    let picture = Picture {
        origin: Origin::sound_hub(),
        apps: BTreeSet::from([app()]),
        groups: vec![
            asked("amd.zone-a", Ok(held())),
            asked("amd.zone-b", Err(away)),
            asked("intel.zone-a", Ok(rolling())),
            asked("intel.zone-b", Ok(settled())),
        ],
    };
    FleetReport::of(picture, NOW_S)
}

#[test]
fn the_fleet_is_a_line_per_group_and_app() {
    assert_eq!(
        fleet(&picture(), Look::PLAIN, false),
        "\
GROUP         APP  STATE         RUNS   TARGET  WAVE  UPDATED  SERVING  LEADER  WHY
amd.zone-a    web  held          1.0.0  1.1.0   -     3/3      3/3      web-1   check failed on \
web-1: http: status 500
amd.zone-b    -    (running)     -      -       -     -        -        -       none of 3 agents \
answered: 10.0.0.1:7417 refused the connection
intel.zone-a  web  wave-applied  1.0.0  1.1.0   2     2/3 #>.  2/3      web-1   web-2: check
intel.zone-b  web  running       1.0.0  -       -     3/3      3/3      web-1   -
"
    );
    let empty = Picture { origin: Origin::sound_hub(), apps: BTreeSet::new(), groups: Vec::new() };
    let text = fleet(&FleetReport::of(empty, NOW_S), Look::PLAIN, false);
    assert!(text.contains("cohort token create"), "{text}");
}

#[test]
fn a_group_in_full_shows_every_server() {
    let report = picture();
    assert_eq!(
        group(&report.groups[2], Look::PLAIN),
        "\
group intel.zone-a (intel): 3 servers, 3 voters, 0 standbys, leader web-1 (term 3), incarnation 12

app web: wave-applied, wave 2 (web-2), runs 1.0.0, target 1.1.0, for 12s
  waiting 12s: web-2: check

SERVER  MEMBER  HEARD  RUNS   SERVING  STEP   NOTE
web-1   leader  0s     1.1.0  yes      -
web-2   voter   0s     1.1.0  no       check  being changed
web-3   voter   0s     1.0.0  yes      -
"
    );
    let away = group(&report.groups[1], Look::PLAIN);
    assert!(away.contains("web running"), "the registry's last record: {away}");
}

#[test]
fn narrow_terminals_wrap_and_only_they_get_colours() {
    let look = Look { color: true, width: Some(100) };
    let text = fleet(&picture(), look, false);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines[1].contains("\u{1b}["), "held is coloured: {text}");
    assert!(lines[2].trim_start().starts_with("web-1: http"), "the reason wraps: {text}");
    assert!(!fleet(&picture(), Look::PLAIN, false).contains('\u{1b}'));
}

#[test]
fn groups_are_listed_with_their_servers_and_members() {
    assert_eq!(
        groups::list(&picture(), Look::PLAIN),
        "\
GROUP         SERVERS  VOTERS  STANDBYS  LEADER  LABELS                      NOTE
amd.zone-a    3        3       0         web-1   platform=intel,zone=zone-a
amd.zone-b    -        -       -         -       -                           none of 3 agents \
answered: 10.0.0.1:7417 refused the connection
intel.zone-a  3        3       0         web-1   platform=intel,zone=zone-a
intel.zone-b  3        3       0         web-1   platform=intel,zone=zone-a
"
    );
    assert_eq!(
        groups::show(&settled(), Look::PLAIN),
        "\
group intel.zone-a
  incarnation 12, term 3, log 99 (applied 99), answered by web-1
  labels: platform=intel,zone=zone-a

SERVER  ADDRESS        RACK  MEMBER  NUMBER  HEARD
web-1   10.0.0.1:7417  -     leader  1       0s
web-2   10.0.0.2:7417  -     voter   2       0s
web-3   10.0.0.3:7417  -     voter   3       0s
"
    );
}

#[test]
fn transfers_in_progress_are_below_the_groups_and_those_that_ended_are_not_shown() {
    let report = |status| {
        let mut report = picture();
        report.groups.truncate(1);
        report.groups[0].status = Some(status);
        report
    };
    let (line, blame) = {
        let moved = &moving().transfers[0];
        (transfer::sentence(moved), transfer::offender(&moved.offenders[0]))
    };
    let text = fleet(&report(moving()), Look::PLAIN, false);
    assert!(text.ends_with(&format!("\n\namd.zone-a {line}\n")), "{text}");
    let full = group(&report(moving()).groups[0], Look::PLAIN);
    assert!(full.contains(&line) && full.contains(&blame), "{full}");
    let mut ended = moving();
    ended.transfers[0].under_way = false;
    let line = transfer::sentence(&ended.transfers[0]);
    for text in [
        fleet(&report(ended.clone()), Look::PLAIN, false),
        group(&report(ended).groups[0], Look::PLAIN),
    ] {
        assert!(!text.contains(&line) && !text.contains(&blame), "{text}");
    }
}

#[test]
fn a_transfer_is_one_line() {
    let mut one = moving().transfers.remove(0);
    (one.chains[0].depth, one.slow_servers, one.slow) = (4, 1, vec!["web-3".parse().unwrap()]);
    assert_eq!(
        transfer::sentence(&one),
        "web 1.1.0: 84.0 MiB of 192.0 MiB · mirrors 32.0 MiB, 48.0 Mbit/s · peers 52.0 MiB, \
         72.0 Mbit/s · complete on 0 of 3 · chain web-1 → web-2 → … (4 deep) · slow web-3 · \
         about 7s left"
    );
}

#[test]
fn programs_see_plain_numbers_with_their_units_in_the_names() {
    let mut report = picture();
    report.groups[0].status = Some(moving());
    let json = serde_json::to_value(&report).unwrap();
    let transfer = &json["groups"][0]["status"]["transfers"][0];
    for (key, value) in [
        ("length_bytes", 64 << 20),
        ("held_bytes", 84 << 20),
        ("mirror_bytes_per_second", 6_000_000),
        ("left_ms", 7_000),
        ("slow_servers", 0),
    ] {
        assert_eq!(transfer[key], value, "{key}");
    }
    assert_eq!(transfer["chains"][0]["servers"], serde_json::json!(["web-1", "web-2"]));
    assert_eq!(transfer["offenders"][0]["what"], "wrong-bytes");
    assert_eq!(transfer["offenders"][0]["source"]["server"], "web-3");
}

/// Hundreds of groups: what is not well stands first, what is well is counted.
#[test]
fn of_many_groups_those_that_rest_are_counted() {
    let mut many = picture();
    let well = many.groups.iter().find(|group| group.rests()).unwrap().clone();
    let not_well = many.groups.iter().filter(|group| !group.healthy).count();
    assert!(not_well > 0);
    for nth in 0..100 {
        let group = format!("a{nth:03}").parse().unwrap();
        many.groups.insert(0, GroupReport { group, ..well.clone() });
    }
    let text = fleet(&many, Look::PLAIN, false);
    let first = text.lines().nth(1).unwrap();
    let is_first = |group: &GroupReport| first.starts_with(group.group.as_str());
    assert!(many.groups.iter().filter(|group| !group.healthy).any(is_first), "{text}");
    assert!(!text.contains("a050") && text.contains("--all"), "{text}");
    assert!(fleet(&many, Look::PLAIN, true).contains("a050"));
}
