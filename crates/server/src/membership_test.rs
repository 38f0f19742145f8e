use std::collections::BTreeMap;

use cohort_core::ids::{BootEpoch, GroupId, Incarnation, MemberId, ServerId};
use cohort_core::orders::{MemberOrder, Orders};

use crate::asking::Received;
use crate::membership::{
    Found, Obedience, OwnLog, asks_for_incarnation, carries_another, failure_domain, found, founds,
    obedience,
};

const FIRST: Incarnation = Incarnation(1);
const SECOND: Incarnation = Incarnation(2);

fn web() -> GroupId {
    GroupId::new("web").unwrap()
}

fn server(name: &str) -> ServerId {
    ServerId::new(name).unwrap()
}

#[test]
fn a_log_of_an_earlier_incarnation_is_set_aside_and_a_foreign_one_left_alone() {
    assert_eq!(found("web", FIRST, &web(), Some(FIRST)), Found::Open);
    assert_eq!(found("web", FIRST, &web(), None), Found::Open, "a registry that is away");
    assert_eq!(found("web", SECOND, &web(), Some(FIRST)), Found::Open, "an old answer");
    assert_eq!(found("web", FIRST, &web(), Some(SECOND)), Found::SetAside);
    assert_eq!(found("db", FIRST, &web(), Some(SECOND)), Found::OtherGroup);
}

#[test]
fn only_the_first_server_of_an_incarnation_without_members_founds_it() {
    let (first, other) = (server("s1"), server("s2"));
    assert!(founds(&first, (FIRST, &first), None));
    assert!(!founds(&other, (FIRST, &first), None));
    assert!(!founds(&first, (FIRST, &first), Some(FIRST)), "it lost its disk, and joins again");
    assert!(founds(&first, (SECOND, &first), Some(FIRST)), "a recovered group");
}

#[test]
fn without_a_leader_every_look_asks_for_the_groups_incarnation() {
    assert!((1..30).all(|look| asks_for_incarnation(look, false)));
    let led: Vec<u64> = (1..30).filter(|look| asks_for_incarnation(*look, true)).collect();
    assert_eq!(led, [12, 24]);
}

#[test]
fn only_fresh_orders_of_this_incarnation_and_a_higher_number_replace_a_member() {
    let replaced = |now_ms, incarnation, member: Option<u64>| {
        let orders = Orders {
            group: web(),
            incarnation,
            server: server("s1"),
            apps: Vec::new(),
            member: member.map(|member| MemberOrder { member: MemberId(member) }),
            members: Vec::new(),
            heard: BootEpoch(0),
        };
        let received = Received {
            orders,
            asked_ms: 1_000,
            valid_ms: 500,
            leader: None,
            voters: Default::default(),
        };
        carries_another(&received, now_ms, FIRST, MemberId(4))
    };
    assert!(!replaced(1_000, FIRST, Some(4)));
    assert!(!replaced(1_000, FIRST, Some(3)), "orders of long ago");
    assert!(replaced(1_000, FIRST, Some(5)));
    assert!(replaced(1_499, FIRST, None), "its number is retired");
    assert!(!replaced(1_500, FIRST, None), "stale orders");
    assert!(!replaced(1_000, SECOND, None), "another incarnation");
}

/// Orders that name this member, of a group that has heard of that start.
fn received(member: Option<u64>, heard: u64) -> Received {
    let orders = Orders {
        group: web(),
        incarnation: FIRST,
        server: server("s1"),
        apps: Vec::new(),
        member: member.map(|member| MemberOrder { member: MemberId(member) }),
        members: Vec::new(),
        heard: BootEpoch(heard),
    };
    Received { orders, asked_ms: 1_000, valid_ms: 500, leader: None, voters: Default::default() }
}

#[test]
fn an_agent_that_starts_where_the_group_has_heard_it_already_has_an_earlier_disk() {
    let judged = |heard, start| obedience(&received(None, heard), 1_000, OwnLog::None, start);
    let start = (BootEpoch(7), false);
    assert_eq!([judged(0, start), judged(6, start)], [Obedience::Obey; 2]);
    let heard = |heard| Obedience::EarlierDisk { heard: BootEpoch(heard) };
    assert_eq!([judged(7, start), judged(9, start)], [heard(7), heard(9)]);
    let this_year = 1_800_000_000;
    assert_eq!(judged(this_year, start), heard(this_year), "its clock began in 1970");
    assert_eq!(judged(1 << 39, start), Obedience::Obey, "no disk goes back that far");
    let reported = (BootEpoch(7), true);
    assert_eq!(judged(7, reported), Obedience::Obey, "of the reports of this start");
    assert_eq!(judged(8, reported), heard(8), "another machine spoke for the server meanwhile");
}

#[test]
fn orders_wait_until_the_group_vouches_for_the_log_on_the_disk() {
    let own = (FIRST, MemberId(4));
    let judged = |ordered, proven| {
        let log = OwnLog::Open { incarnation: own.0, member: own.1, proven };
        obedience(&received(ordered, 0), 1_000, log, (BootEpoch(1), false))
    };
    assert_eq!(judged(Some(4), true), Obedience::Obey);
    assert_eq!(judged(Some(4), false), Obedience::Ignore, "it may be a copy");
    let retired = Obedience::Retired { incarnation: own.0, member: own.1 };
    assert_eq!([judged(Some(5), false), judged(None, false)], [retired; 2]);
    let closed = obedience(&received(Some(4), 0), 1_000, OwnLog::Closed, (BootEpoch(1), false));
    assert_eq!(closed, Obedience::Ignore);
}

#[test]
fn a_failure_domain_names_the_zone_in_a_group_that_spans_zones() {
    let labels = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    };
    let own = labels(&[("platform", "intel"), ("zone", "a")]);
    let (spans, one) = (labels(&[("platform", "intel")]), own.clone());
    assert_eq!(failure_domain(Some("r7"), &own, &spans).as_deref(), Some("a/r7"));
    assert_eq!(failure_domain(None, &own, &spans).as_deref(), Some("a"));
    assert_eq!(failure_domain(Some("r7"), &own, &one).as_deref(), Some("r7"));
    assert_eq!(failure_domain(None, &own, &one), None);
}
