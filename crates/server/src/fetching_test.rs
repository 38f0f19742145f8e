use cohort_core::ids::Incarnation;
use cohort_core::orders::{AppOrders, FetchOrder, Orders, Source};
use cohort_core::release::{Release, Rollback};

use super::{Fetching, VERIFY_AGAIN_MS, shown};

fn release(version: &str) -> Release {
    let digest = |byte: u8| format!("{byte:02x}").repeat(32).parse().unwrap();
    Release {
        version: version.parse().unwrap(),
        platform: "intel".parse().unwrap(),
        artifact: digest(version.as_bytes()[0]),
        manifest: digest(version.as_bytes()[0] ^ 0x80),
        length: 7,
        unpacked_bytes: 64 << 30,
        entries: 250_000,
        rollback: Rollback::Revert,
    }
}

fn source(server: &str) -> Source {
    Source { server: server.parse().unwrap(), address: format!("{server}:1") }
}

fn orders(releases: &[Release], sources: &[Source]) -> Orders {
    let fetch = releases.iter().map(|release| FetchOrder {
        release: release.clone(),
        from_mirror: true,
        sources: sources.to_vec(),
    });
    let app = AppOrders {
        app: "web".parse().unwrap(),
        fetch: fetch.collect(),
        activation: None,
        run: None,
        owes: false,
        in_service: Some(false),
        checks: Vec::new(),
        trial: None,
        keep: Vec::new(),
        holds: Vec::new(),
    };
    Orders {
        group: "intel.a".parse().unwrap(),
        incarnation: Incarnation(1),
        server: "s2".parse().unwrap(),
        apps: vec![app],
        member: None,
        members: Vec::new(),
        heard: cohort_core::ids::BootEpoch(0),
    }
}

fn to_verify(fetching: &mut Fetching, now_ms: u64, orders: &Orders) -> Vec<Release> {
    let due = fetching.to_verify(now_ms, orders, None).into_iter();
    due.map(|(_, fetch)| fetch.release).collect()
}

fn verified(fetching: &Fetching, orders: &Orders) -> Vec<Release> {
    fetching.verified(orders).map(|(_, fetch)| fetch.release.clone()).collect()
}

#[test]
fn nothing_is_fetched_or_announced_before_its_signature_is_checked() {
    let mut fetching = Fetching::default();
    let (good, forged) = (release("1.0.0"), release("2.0.0"));
    let orders = orders(&[good.clone(), forged.clone()], &[]);
    assert_eq!(to_verify(&mut fetching, 0, &orders), [good.clone(), forged.clone()]);
    assert_eq!(verified(&fetching, &orders), []);
    assert_eq!(fetching.announce(&orders, |_| true), [], "whole, but not verified");
    fetching.checked(0, &good, true);
    fetching.checked(0, &forged, false);
    assert_eq!(verified(&fetching, &orders), std::slice::from_ref(&good));
    assert_eq!(fetching.announce(&orders, |_| false), [], "verified, but not whole");
    let news = [("web".parse().unwrap(), good.artifact)];
    assert_eq!(fetching.announce(&orders, |_| true), news);
    assert_eq!(fetching.announce(&orders, |_| true), [], "known");
}

#[test]
fn a_refused_release_is_checked_again_after_a_pause_and_a_verified_one_never() {
    let mut fetching = Fetching::default();
    let (good, late) = (release("1.0.0"), release("2.0.0"));
    let orders = orders(&[good.clone(), late.clone()], &[]);
    fetching.checked(1_000, &good, true);
    fetching.checked(1_000, &late, false);
    assert_eq!(to_verify(&mut fetching, 1_000 + VERIFY_AGAIN_MS - 1, &orders), []);
    let again = 1_000 + VERIFY_AGAIN_MS;
    assert_eq!(to_verify(&mut fetching, again, &orders), std::slice::from_ref(&late));
    fetching.checked(again, &late, true);
    assert_eq!(to_verify(&mut fetching, again + VERIFY_AGAIN_MS, &orders), []);
    assert_eq!(verified(&fetching, &orders), [good, late]);
}

#[test]
fn what_is_no_longer_ordered_is_verified_again_when_it_comes_back() {
    let mut fetching = Fetching::default();
    let (good, bad) = (release("1.0.0"), release("2.0.0"));
    let both = [good.clone(), bad.clone()];
    fetching.checked(0, &good, true);
    fetching.checked(0, &bad, false);
    assert_eq!(to_verify(&mut fetching, 1, &orders(&[], &[])), []);
    assert_eq!(to_verify(&mut fetching, 1, &orders(&both, &[])), both);
}

#[test]
fn the_leader_is_asked_for_the_metadata_where_an_order_names_no_source() {
    let mut fetching = Fetching::default();
    let mut sources = |orders: &Orders, leader: Option<&Source>| {
        let mut due = fetching.to_verify(0, orders, leader).into_iter();
        due.next().map(|(_, fetch)| fetch.sources).unwrap()
    };
    let one = [release("1.0.0")];
    let leader = source("s1");
    assert_eq!(sources(&orders(&one, &[]), Some(&leader)), std::slice::from_ref(&leader));
    assert_eq!(sources(&orders(&one, &[]), None), []);
    let holder = [source("s3")];
    assert_eq!(sources(&orders(&one, &holder), Some(&leader)), holder);
}

#[test]
fn the_transfer_of_the_first_artifact_that_has_started_is_shown_also_as_a_delta() {
    let (first, second) = (release("1.0.0"), release("2.0.0"));
    let ordered = &orders(&[first.clone(), second.clone()], &[]).apps[0];
    let transfer = |release: &Release, state: Option<&'static str>| {
        (FetchOrder { release: release.clone(), from_mirror: true, sources: Vec::new() }, state)
    };
    let shown = |transfers: &[_]| shown(ordered, transfers).map(|(_, state)| *state);
    let foreign = transfer(&release("3.0.0"), Some("foreign"));
    assert_eq!(shown(&[foreign.clone(), transfer(&first, None)]), None);
    let second = transfer(&second, Some("second"));
    assert_eq!(shown(&[foreign, transfer(&first, None), second.clone()]), Some("second"));
    let delta = Release { artifact: release("4.0.0").artifact, ..first.clone() };
    assert_eq!(shown(&[second.clone(), transfer(&delta, Some("delta"))]), Some("delta"));
    assert_eq!(shown(&[second, transfer(&first, Some("first"))]), Some("first"));
}

#[test]
fn a_lost_artifact_is_reported_once_and_announced_when_it_comes_again() {
    let (mut fetching, one) = (Fetching::default(), release("1.0.0"));
    let mut believed = orders(std::slice::from_ref(&one), &[]);
    believed.apps[0].holds = vec![one.artifact.clone()];
    fetching.checked(0, &one, true);
    let app = &believed.apps[0].app;
    let news = vec![(app.clone(), one.artifact.clone())];
    assert_eq!(fetching.announce(&believed, |_| true), news);
    assert_eq!(fetching.lost(&believed, |_| true), []);
    assert_eq!(fetching.lost(&believed, |_| false), news, "its disk lost it");
    assert_eq!(fetching.lost(&believed, |_| false), [], "once");
    assert_eq!(fetching.announce(&believed, |_| true), news, "it came again");
    let corrected = orders(std::slice::from_ref(&one), &[]);
    assert_eq!(fetching.lost(&corrected, |_| false), []);
    assert_eq!(fetching.lost(&believed, |_| false), news, "lost again");
}
