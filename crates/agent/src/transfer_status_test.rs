use cohort_core::ids::ServerId;
use cohort_distribute::{Accusation, Offence, ServerView, SourceName, TransferView};
use cohort_wire::agent::{NAMES_SHOWN_MAX, TRANSFERS_SHOWN_MAX, TransferStatus};

use super::{Named, transfers};

const UNIT: u64 = 64 << 10;
const UNITS: u32 = 1_024;

fn id(name: &str) -> ServerId {
    name.parse().unwrap()
}

fn server(name: &str, parent: Option<&str>, depth: usize, held: u32) -> ServerView {
    ServerView {
        server: id(name),
        parent: parent.map(id),
        depth,
        held,
        units: UNITS,
        rate: 6_112_500,
        slow: false,
        there: true,
        barred: false,
        accusations: Vec::new(),
    }
}

fn view(servers: Vec<ServerView>) -> TransferView {
    let whole = servers.iter().filter(|server| server.held == server.units).count();
    TransferView {
        artifact: "ab".repeat(32).parse().unwrap(),
        length: u64::from(UNITS) * UNIT,
        for_ms: 4_000,
        idle_ms: 10,
        under_way: whole < servers.len(),
        took_ms: None,
        mirror_bytes: 32 << 20,
        peer_bytes: 60 << 20,
        mirror_rate: 6_112_500,
        downlink_rate: None,
        whole,
        heads: vec![id("s3")],
        fan_out: 1,
        left_ms: Some(8_400),
        servers,
    }
}

fn shown(view: TransferView) -> TransferStatus {
    let named = |_: &TransferView| {
        Some(Named { app: "web".parse().unwrap(), version: "1.2.0".parse().unwrap(), delta: false })
    };
    transfers(vec![view], named).pop().unwrap()
}

#[test]
fn a_transfer_is_summed_up() {
    let mut servers = vec![
        server("s1", Some("s3"), 1, 512),
        server("s2", Some("s1"), 2, 480),
        server("s3", None, 0, 512),
        server("s4", Some("s2"), 3, 100),
    ];
    servers[3].slow = true;
    let status = shown(view(servers));
    assert_eq!((status.held_bytes, status.wanted_bytes), (1_604 * UNIT, 256 << 20));
    assert_eq!(status.chains[0].servers, ["s3", "s1", "s2", "s4"].map(id));
    assert_eq!(
        (status.slow, status.whole_servers, status.left_ms),
        (vec![id("s4")], 0, Some(8_400))
    );
}

#[test]
fn one_that_ended_has_the_time_it_took() {
    let mut over = view(vec![server("s1", None, 0, UNITS), server("s2", None, 0, UNITS)]);
    (over.took_ms, over.left_ms, over.mirror_rate) = (Some(11_300), None, 0);
    over.heads.clear();
    let status = shown(over);
    assert_eq!((status.whole_servers, status.took_ms, status.left_ms), (2, Some(11_300), None));
    assert!(status.chains.is_empty());
}

#[test]
fn a_tree_is_told_by_its_longest_chains_and_every_link_once() {
    // r feeds a and b; a feeds c and d; d feeds e.
    let servers = vec![
        server("a", Some("r"), 1, 9),
        server("b", Some("r"), 1, 9),
        server("c", Some("a"), 2, 9),
        server("d", Some("a"), 2, 9),
        server("e", Some("d"), 3, 9),
        server("r", None, 0, 9),
    ];
    let chains = shown(view(servers)).chains;
    let texts: Vec<String> = chains
        .iter()
        .map(|chain| chain.servers.iter().map(ServerId::as_str).collect::<Vec<_>>().join(">"))
        .collect();
    assert_eq!(texts, ["r>a>d>e", "a>c", "r>b"]);
}

#[test]
fn a_plan_that_went_in_a_circle_would_end_nobodys_status() {
    let servers = vec![
        server("a", Some("b"), 2, 9),
        server("b", Some("a"), 2, 9),
        server("c", Some("c"), 2, 9),
        server("d", Some("e"), 1, 9),
        server("e", None, 0, 9),
    ];
    let status = shown(view(servers));
    assert_eq!(status.chains[0].servers, ["e", "d"].map(id));
}

#[test]
fn offenders_come_with_what_they_did_and_who_saw_it() {
    let peer = SourceName::Server(id("s6"));
    let accuse =
        |source: &SourceName, what, count| Accusation { source: source.clone(), what, count };
    let mut servers: Vec<ServerView> =
        (1..=6).map(|n| server(&format!("s{n}"), None, 0, 9)).collect();
    for one in &mut servers[..5] {
        one.accusations = vec![accuse(&peer, Offence::WrongBytes, 2)];
    }
    servers[5].barred = true;
    servers[0].accusations.push(accuse(&SourceName::mirror("http://m1/"), Offence::Silent, 1));
    let status = shown(view(servers));
    let told: Vec<_> =
        status.offenders.iter().map(|o| (o.source.clone(), o.what, o.barred)).collect();
    assert_eq!(
        told,
        [
            (peer, Offence::WrongBytes, true),
            (SourceName::mirror("http://m1/"), Offence::Silent, false),
        ]
    );
    assert_eq!((status.offenders[0].count, status.offenders[0].told_by_servers), (10, 5));
}

#[test]
fn a_thousand_servers_make_a_small_status() {
    let long = |n: usize| format!("server-{n:04}-{}", "x".repeat(51));
    let accused: Vec<Accusation> = (0..16)
        .map(|n| SourceName::mirror(&"u".repeat(200 - n)))
        .map(|source| Accusation { source, what: Offence::Slow, count: u32::MAX })
        .collect();
    let servers: Vec<ServerView> = (0..1_000)
        .map(|n| {
            let parent = (n > 0).then(|| long(if n % 10 == 0 { 0 } else { n - 1 }));
            let mut one = server(&long(n), parent.as_deref(), n, 9);
            (one.slow, one.accusations) = (true, accused.clone());
            one
        })
        .collect();
    let views: Vec<TransferView> = (0..64).map(|_| view(servers.clone())).collect();
    let all = transfers(views, |_| None);
    assert_eq!(all.len(), TRANSFERS_SHOWN_MAX);
    assert_eq!(all[0].slow_servers, 1_000);
    assert_eq!(all[0].slow.len(), NAMES_SHOWN_MAX);
    assert_eq!((all[0].chains_in_all, all[0].chains[0].depth), (100, 11));
    let bytes = serde_json::to_vec(&all[0]).unwrap().len();
    assert!(bytes < 16 << 10, "{bytes} bytes for one transfer");
}

#[test]
fn what_is_under_way_comes_first_and_then_what_ended_last() {
    let over = |idle_ms| TransferView {
        under_way: false,
        idle_ms,
        ..view(vec![server("s1", None, 0, UNITS)])
    };
    let under_way = TransferView { idle_ms: 3_000, ..view(vec![server("s1", None, 0, 1)]) };
    let all = transfers(vec![over(500), over(20), under_way], |_| None);
    let order: Vec<bool> = all.iter().map(|status| status.under_way).collect();
    assert_eq!(order, [true, false, false]);
    assert_eq!(all[0].version, None);
}
