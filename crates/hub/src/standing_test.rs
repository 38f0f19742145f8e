use std::collections::BTreeSet;

use cohort_core::ids::{GroupId, Incarnation, MemberId, ServerId};
use cohort_registry::keys;
use cohort_registry::records::{
    BootstrapRecord, MemberRecord, MembersRecord, SCHEMA, ServerRecord, Stamp, encode,
};
use cohort_registry::state::State;
use cohort_registry::{Op, Txn};

use super::Standing;

fn group() -> GroupId {
    "intel.zone-a".parse().unwrap()
}

fn server(name: &str) -> ServerId {
    name.parse().unwrap()
}

/// A registry that knows these servers of the group, and these voters.
fn registry(servers: &[&str], voters: &[&str], founder: Option<&str>) -> State {
    let mut state = State::new();
    let mut put = |key: String, value: String| {
        let txn = Txn { then: vec![Op::put(key, value)], ..Txn::default() };
        let made = state.decide(&txn).unwrap();
        state.accept(made.changes);
    };
    for name in servers {
        let record = ServerRecord {
            schema: SCHEMA,
            server: server(name),
            address: format!("{name}:7417"),
            labels: Default::default(),
            rack: None,
            group: group(),
        };
        put(keys::server(&server(name)), encode(&record));
    }
    if let Some(name) = founder {
        let record = BootstrapRecord {
            incarnation: None,
            ..BootstrapRecord::restored(group(), Incarnation(1), server(name))
        };
        put(keys::bootstrap(&group()), encode(&record));
    }
    if !voters.is_empty() {
        put(keys::members(&group()), encode(&members(voters)));
    }
    state
}

fn members(voters: &[&str]) -> MembersRecord {
    let member = |name: &&str| MemberRecord {
        server: server(name),
        address: format!("{name}:7417"),
        member: MemberId(1),
        voter: true,
    };
    let members = voters.iter().map(member).collect();
    MembersRecord { schema: SCHEMA, group: group(), stamp: Stamp::default(), members }
}

/// Whether the hub takes a change by the first of these servers, with the others behind it.
fn taken(state: &State, behind: &[&str], key: &str, value: Option<&str>) -> bool {
    taken_by(state, false, behind, key, value)
}

fn taken_by(
    state: &State,
    restored: bool,
    behind: &[&str],
    key: &str,
    value: Option<&str>,
) -> bool {
    let (group, author) = (group(), server(behind[0]));
    let behind: BTreeSet<ServerId> = behind.iter().map(|name| server(name)).collect();
    let standing = Standing { group: &group, author: &author, behind, restored };
    let op = match value {
        Some(value) => Op::put(key, value),
        None => Op::Delete { key: key.to_owned() },
    };
    standing.check(&keys::parse(key).unwrap(), &op, state).is_ok()
}

fn verdict() -> String {
    let (app, version) = ("web".parse().unwrap(), "1.0.0".parse().unwrap());
    keys::verdict(&app, &version, &"linux/amd64".parse().unwrap(), &group())
}

#[test]
fn one_server_writes_no_record_of_its_group_alone() {
    let state = registry(&["s1", "s2", "s3", "s4"], &["s1", "s2", "s3"], Some("s1"));
    let named = |voters| encode(&members(voters));
    let (members_key, record) = (keys::members(&group()), named(&["s1", "s2", "s3"]));
    for key in [verdict(), keys::group_info(&group()), keys::bootstrap(&group())] {
        for hostile in ["s1", "s4"] {
            assert!(!taken(&state, &[hostile], &key, Some("{}")), "{key} by {hostile}");
            assert!(!taken(&state, &[hostile], &key, None), "{key} deleted by {hostile}");
        }
        assert!(taken(&state, &["s1", "s3"], &key, Some("{}")), "{key}");
    }
    assert!(!taken(&state, &["s3"], &members_key, Some(&record)));
    assert!(taken(&state, &["s3", "s1"], &members_key, Some(&record)));
    assert!(!taken(&state, &["s4"], &members_key, Some(&named(&["s4"]))), "a group of its own");
    assert!(!taken(&state, &["s1", "s4"], &verdict(), Some("{}")), "s4 does not vote");
    // Two voters were replaced while the hub was away.
    let replaced = named(&["s3", "s4", "s5"]);
    assert!(taken(&state, &["s3", "s4"], &members_key, Some(&replaced)));
}

#[test]
fn a_group_with_one_voter_writes_by_that_one_and_a_founder_founds() {
    let founding = registry(&["s1", "s2"], &[], Some("s1"));
    let (key, alone) = (keys::members(&group()), encode(&members(&["s1"])));
    assert!(taken(&founding, &["s1"], &key, Some(&alone)));
    let other = encode(&members(&["s2"]));
    assert!(!taken(&founding, &["s2"], &key, Some(&other)), "it does not found the group");
    let one = registry(&["s1", "s2"], &["s1"], Some("s1"));
    assert!(taken(&one, &["s1"], &verdict(), Some("{}")));
    assert!(!taken(&one, &["s2"], &verdict(), Some("{}")));
    // The others were removed by an operator, and the group is told by the one that is left.
    let left = registry(&["s1"], &["s1", "s2", "s3"], Some("s2"));
    assert!(taken(&left, &["s1"], &key, Some(&alone)));
}

#[test]
fn a_hub_that_lost_its_records_takes_them_from_two_servers() {
    let lost = registry(&["s1", "s2", "s3"], &[], None);
    let (key, record) = (keys::members(&group()), encode(&members(&["s1", "s2", "s3"])));
    assert!(!taken(&lost, &["s1"], &key, Some(&record)));
    assert!(!taken(&lost, &["s1"], &key, Some(&encode(&members(&["s1"])))));
    assert!(taken(&lost, &["s1", "s2"], &key, Some(&record)));
    assert!(!taken(&lost, &["s1"], &keys::bootstrap(&group()), Some("{}")));
    assert!(taken(&lost, &["s1", "s3"], &keys::bootstrap(&group()), Some("{}")));
    // The first that tells the hub where it is would be alone.
    let only = registry(&["s1"], &[], None);
    let alone = encode(&members(&["s1"]));
    assert!(!taken_by(&only, true, &["s1"], &key, Some(&alone)));
    assert!(!taken_by(&only, true, &["s1"], &keys::bootstrap(&group()), Some("{}")));
    assert!(taken_by(&only, true, &["s1", "s2"], &key, Some(&record)));
    assert!(taken_by(&only, false, &["s1"], &key, Some(&alone)), "an operator has confirmed it");
}
