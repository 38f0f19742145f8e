use std::collections::BTreeMap;

use cohort_core::ids::{BootEpoch, GroupId, Incarnation, MemberId, ServerId};
use cohort_core::orders::{MemberOrder, Orders};

use crate::asking::Received;
use crate::membership::{
    Found, asks_for_incarnation, carries_another, failure_domain, found, founds, is_earlier_disk,
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
        let received = Received { orders, asked_ms: 1_000, valid_ms: 500, leader: None };
        carries_another(&received, now_ms, FIRST, MemberId(4))
    };
    assert!(!replaced(1_000, FIRST, Some(4)));
    assert!(!replaced(1_000, FIRST, Some(3)), "orders of long ago");
    assert!(replaced(1_000, FIRST, Some(5)));
    assert!(replaced(1_499, FIRST, None), "its number is retired");
    assert!(!replaced(1_500, FIRST, None), "stale orders");
    assert!(!replaced(1_000, SECOND, None), "another incarnation");
}

#[test]
fn an_agent_that_starts_where_the_group_has_heard_it_already_has_an_earlier_disk() {
    let earlier = |heard, start| {
        let orders = Orders {
            group: web(),
            incarnation: FIRST,
            server: server("s1"),
            apps: Vec::new(),
            member: None,
            members: Vec::new(),
            heard: BootEpoch(heard),
        };
        is_earlier_disk(&orders, BootEpoch(start))
    };
    assert!(!earlier(0, 1) && !earlier(6, 7));
    assert!(earlier(7, 7) && earlier(9, 7));
    assert!(!earlier(1 << 39, 7), "no disk goes back that far");
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
