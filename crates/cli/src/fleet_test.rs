use std::path::Path;

use cohort_core::ids::{GroupId, Incarnation, MemberId, ServerId};
use cohort_core::phase::PhaseName;
use cohort_registry::fleet::Fleet;
use cohort_registry::records::{MemberRecord, MembersRecord, SCHEMA, ServerRecord, Stamp};
use cohort_view::hint::Hint;

use super::{
    CACHE_VERSION, CANDIDATES_MAX, CacheFile, Groups, Known, KnownGroup, Recorded, Selector,
};

fn server(name: &str) -> ServerId {
    ServerId::new(name).unwrap()
}

fn fleet() -> Fleet {
    let group = GroupId::new("intel.zone-a").unwrap();
    let mut fleet = Fleet::default();
    for number in 1..=20 {
        fleet.servers.push(ServerRecord {
            schema: SCHEMA,
            server: server(&format!("web-{number}")),
            address: format!("10.0.0.{number}:7417"),
            labels: Default::default(),
            rack: None,
            group: group.clone(),
        });
    }
    let member = |name: &str, voter| MemberRecord {
        server: server(name),
        address: "10.0.1.1:7417".to_owned(),
        member: MemberId(1),
        voter,
    };
    fleet.groups.entry(group).or_default().members = Some(MembersRecord {
        schema: SCHEMA,
        group: group.clone(),
        stamp: Stamp { incarnation: Incarnation(1), ..Stamp::default() },
        members: vec![member("web-7", false), member("web-3", true)],
    });
    fleet
}

#[test]
fn voters_are_asked_first_then_standbys_then_some_others() {
    let known = Known::of(&fleet());
    let group = &known.groups["intel.zone-a"];
    let names: Vec<&str> = group.candidates.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!(names[..6], ["web-3", "web-7", "web-3", "web-7", "web-1", "web-2"]);
    let of = |index: usize| group.candidates[index].1.as_str();
    assert_eq!((of(0), of(2)), ("10.0.1.1:7417", "10.0.0.3:7417"), "it may have moved");
    assert_eq!(names.len(), CANDIDATES_MAX);
    assert_eq!(group.servers.len(), 20);
    assert_eq!(known.group_of("web-19").unwrap().as_str(), "intel.zone-a");
    assert_eq!(known.group_of("web-99"), None);
}

#[test]
fn a_mistyped_group_is_told_its_neighbour() {
    let known = Known::of(&fleet());
    let failure = known.group(&GroupId::new("intel.zone-c").unwrap()).unwrap_err();
    assert_eq!(failure.kind, "no_such_group");
    assert_eq!(failure.hints, [Hint::Meant("intel.zone-a".into())]);
}

#[test]
fn the_cache_is_as_its_golden_file_says() {
    let mut known = Known::of(&fleet());
    let group = known.groups.values_mut().next().unwrap();
    group.servers = [server("web-1")].into();
    group.candidates.truncate(2);
    let recorded = Recorded { state: cohort_core::phase::PhaseName::Running, since: 1_700_000_000 };
    group.states.insert("web".parse().unwrap(), recorded);
    known.apps.insert("web".parse().unwrap());
    let file = CacheFile { version: CACHE_VERSION, saved_at: 1_700_000_100, known };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/fleet-cache.jsonl");
    cohort_base::golden::hold(&golden, &[file]);
}

#[test]
fn a_selector_chooses_groups_by_labels_and_apps() {
    let group = |zone: &str, app: &str| KnownGroup {
        labels: [("zone".to_owned(), zone.to_owned())].into(),
        states: [(app.parse().unwrap(), Recorded { state: PhaseName::Running, since: 0 })].into(),
        ..KnownGroup::default()
    };
    let groups = [("a", group("zone-a", "web")), ("b", group("zone-b", "web"))];
    let groups = groups.map(|(name, known)| (name.parse().unwrap(), known)).into();
    let known = Known { groups, ..Known::default() };
    let chosen = |text: &str| -> Vec<String> {
        let selector: Selector = text.parse().unwrap();
        let chosen = known.clone().chosen(Groups::Some(&selector)).unwrap_or_default();
        chosen.groups.keys().map(ToString::to_string).collect()
    };
    assert_eq!(chosen("zone=zone-a"), ["a"]);
    assert_eq!(chosen("app=web"), ["a", "b"]);
    assert_eq!(chosen("zone=zone-b,app=web"), ["b"]);
    assert!(chosen("zone=zone-b,app=api").is_empty());
    for wrong in ["", "zone", "zone=", "=a", "zone=a,"] {
        assert!(wrong.parse::<Selector>().is_err(), "{wrong}");
    }
}
