//! What a fetch requests from which source.

use std::sync::Arc;

use cohort_core::ids::ServerId;
use cohort_core::orders::{FetchOrder, Source};
use cohort_core::release::{Release, Rollback};

use super::{Effect, FetchWait, Fetcher, RequestId, Step, What};
use crate::{
    Failure, Guidance, Limits, Offence, Outcome, SourceName, Target, UNIT_BYTES, UnitRun, UnitSet,
};

const UNITS: u32 = 1_000;

/// A fetch that tests drive step by step.
struct Case {
    fetcher: Fetcher,
    now_ms: u64,
    have: UnitSet,
    in_flight: Vec<(RequestId, Target, What)>,
}

fn id(name: &str) -> ServerId {
    name.parse().unwrap()
}

fn source(name: &str) -> Source {
    Source { server: id(name), address: format!("{name}:1") }
}

fn run(first: u32, count: u32) -> UnitRun {
    UnitRun { first, count }
}

fn fed_by(feeds: &[&str], spares: &[&str]) -> Guidance {
    let all = |names: &[&str]| names.iter().map(|name| source(name)).collect();
    Guidance { feeds: all(feeds), spares: all(spares), ..Guidance::default() }
}

fn leased(runs: &[UnitRun]) -> Guidance {
    Guidance { lease: runs.to_vec(), ..Guidance::default() }
}

impl Case {
    /// Two mirrors, and holders that the order names.
    fn new(holders: &[&str], from_mirror: bool) -> Self {
        let digest: cohort_core::ids::Digest = "ab".repeat(32).parse().unwrap();
        let release = Release {
            version: "1.0.0".parse().unwrap(),
            platform: "linux/amd64".parse().unwrap(),
            artifact: digest.clone(),
            manifest: digest,
            length: u64::from(UNITS) * UNIT_BYTES,
            unpacked_bytes: 64 << 30,
            entries: 250_000,
            rollback: Rollback::Revert,
        };
        let sources = holders.iter().map(|name| source(name)).collect();
        let order = FetchOrder { release, from_mirror, sources };
        let mirrors = [(0, "m0".to_owned()), (1, "m1".to_owned())];
        let fetcher = Fetcher::new(order, &mirrors, Arc::new(Limits::default()));
        Self { fetcher, now_ms: 0, have: UnitSet::empty(UNITS), in_flight: Vec::new() }
    }

    /// A fetch that a leader has guided.
    fn told(guidance: &Guidance) -> Self {
        let mut case = Self::new(&[], false);
        case.hear(guidance);
        case
    }

    /// A fetch that has had no leader for the full limit.
    fn alone(holders: &[&str], from_mirror: bool) -> Self {
        let mut case = Self::new(holders, from_mirror);
        case.now_ms = Limits::default().no_leader_ms;
        case
    }

    fn hear(&mut self, guidance: &Guidance) {
        self.fetcher.hear(Some(guidance), self.now_ms, self.now_ms);
    }

    fn plain_step(&mut self) -> Step {
        let step = self.fetcher.step(self.now_ms, Some(&self.have), 0);
        for effect in &step.effects {
            match effect.clone() {
                Effect::Ask { id, target, what } => self.in_flight.push((id, target, what)),
                Effect::Cancel { id } => self.in_flight.retain(|(known, ..)| *known != id),
            }
        }
        step
    }

    /// What is requested and cancelled now.
    fn step(&mut self) -> Vec<String> {
        let before = self.in_flight.clone();
        let step = self.plain_step();
        let text = |target: &Target, what: &What| match (target, what) {
            (Target::Server(source), What::Link) => format!("link {}", source.server),
            (Target::Server(source), What::Hashes) => format!("hashes {}", source.server),
            (Target::Mirror(index), What::Hashes) => format!("hashes m{index}"),
            (Target::Mirror(index), What::Units(run)) => {
                format!("m{index} {}..{}", run.first, run.end())
            }
            (Target::Mirror(index), What::Whole) => format!("m{index} whole"),
            (target, what) => panic!("{what:?} of {target:?}"),
        };
        let effects = step.effects.iter().map(|effect| match effect {
            Effect::Ask { target, what, .. } => text(target, what),
            Effect::Cancel { id } => {
                let (_, target, what) = before.iter().find(|(known, ..)| known == id).unwrap();
                format!("cancel {}", text(target, what))
            }
        });
        effects.collect()
    }

    /// Ends the oldest request in flight to a source with this outcome.
    fn ends(&mut self, name: &str, failure: Option<Failure>, units: u32) {
        let place = self.in_flight.iter().position(|(_, target, _)| match target {
            Target::Server(source) => source.server.as_str() == name,
            Target::Mirror(index) => format!("m{index}") == name,
        });
        let (id, _, what) = self.in_flight.remove(place.expect("a request in flight"));
        if let (What::Units(run), None) = (what, failure) {
            self.have.insert_run(run);
        }
        let bytes = u64::from(units) * UNIT_BYTES;
        let failure = failure.map(|failure| (failure, "failed".to_owned()));
        let outcome = Outcome { bytes, elapsed_us: 1_000_000, units, failure };
        self.fetcher.ended(id, outcome, self.now_ms, 0);
    }

    fn hears_from(&mut self, name: &str) {
        let found = self.in_flight.iter().find(|(_, target, _)| {
            matches!(target, Target::Server(source) if source.server.as_str() == name)
        });
        self.fetcher.heard_from(found.expect("a link").0, self.now_ms + 1);
    }

    /// Steps every 50 ms, as with links, for this long.
    fn pass(&mut self, ms: u64) -> Vec<String> {
        let until = self.now_ms + ms;
        let mut all = Vec::new();
        while self.now_ms < until {
            self.now_ms += 50;
            all.extend(self.step());
        }
        all
    }
}

const NONE: [&str; 0] = [];

#[test]
fn a_head_takes_its_lease_from_the_best_mirror_with_two_requests() {
    let mut case = Case::told(&leased(&[run(10, 20), run(100, 200)]));
    assert_eq!(case.step(), ["m0 10..26", "m0 26..30"]);
    assert_eq!(case.step(), NONE);
    case.ends("m0", None, 16);
    assert_eq!(case.step(), ["m0 100..116"], "a second at the measured rate");
}

#[test]
fn requests_follow_the_rate_and_are_split_evenly_at_the_end() {
    let mut case = Case::told(&leased(&[run(0, UNITS)]));
    case.step();
    case.ends("m0", None, 16);
    case.fetcher.sources.ended(
        &crate::SourceId::Mirror(0),
        0,
        Outcome { bytes: 1 << 40, elapsed_us: 1_000_000, units: 1, failure: None },
        super::At { now_ms: 0, random: 0, limits: &Limits::default() },
    );
    assert_eq!(case.step(), ["m0 32..96"], "no longer than allowed");
    let mut case = Case::told(&leased(&[run(0, 10)]));
    assert_eq!(case.step(), ["m0 0..5", "m0 5..10"]);
    let mut case = Case::told(&leased(&[run(0, 5)]));
    assert_eq!(case.step(), ["m0 0..4", "m0 4..5"]);
}

#[test]
fn the_next_mirror_is_asked_only_while_the_first_is_out() {
    let mut case = Case::told(&leased(&[run(0, UNITS)]));
    case.step();
    assert_eq!(case.step(), NONE, "busy, not out");
    case.ends("m0", Some(Failure::Unreachable), 0);
    case.ends("m0", Some(Failure::Unreachable), 0);
    assert_eq!(case.step(), ["m1 0..16", "m1 16..32"]);
    case.now_ms += 60_000;
    case.ends("m1", None, 16);
    case.ends("m1", None, 16);
    assert!(case.step().iter().all(|ask| ask.starts_with("m1")), "back, and not preferred");
}

#[test]
fn with_every_mirror_out_the_wait_says_until_when() {
    let mut case = Case::told(&leased(&[run(0, UNITS)]));
    for mirror in ["m0", "m1"] {
        case.step();
        case.ends(mirror, Some(Failure::Busy { retry_after_ms: 1_000 }), 0);
        case.ends(mirror, Some(Failure::Busy { retry_after_ms: 1_000 }), 0);
    }
    let step = case.plain_step();
    assert_eq!(
        (step.effects, step.waiting_on),
        (vec![], Some(FetchWait::Sources { until_ms: 1_000 }))
    );
    assert_eq!(step.wake_at_ms, Some(1_000));
    case.now_ms = 1_000;
    assert_eq!(case.step(), ["m0 0..16"], "one request at once, now that it was busy");
}

#[test]
fn a_mirror_without_ranges_is_asked_for_everything_once() {
    let mut case = Case::told(&leased(&[run(0, UNITS)]));
    case.step();
    case.ends("m0", Some(Failure::NoRanges), 0);
    case.ends("m0", Some(Failure::NoRanges), 0);
    assert_eq!(case.step(), ["m0 whole"]);
    assert_eq!(case.step(), NONE);
}

#[test]
fn without_unit_hashes_nothing_else_is_asked() {
    let mut head = Case::told(&leased(&[run(0, UNITS)]));
    let ask = |case: &mut Case| case.fetcher.step(case.now_ms, None, 0).effects;
    let [Effect::Ask { target: Target::Mirror(0), what: What::Hashes, .. }] = ask(&mut head)[..]
    else {
        panic!("a head asks its mirror")
    };
    assert_eq!(ask(&mut head), []);
    let mut fed = Case::told(&fed_by(&["a"], &["b"]));
    for (server, failure) in [("a", Some(Failure::Unreachable)), ("b", None)] {
        let [Effect::Ask { id: asked, target: Target::Server(to), what: What::Hashes }] =
            &ask(&mut fed)[..]
        else {
            panic!("the others ask those above them")
        };
        assert_eq!(to.server, id(server));
        let failure = failure.map(|failure| (failure, String::new()));
        fed.fetcher.ended(*asked, Outcome { failure, ..Outcome::default() }, 0, 0);
    }
}

#[test]
fn a_server_without_a_lease_subscribes_to_its_feeds_and_asks_no_mirror() {
    let mut case = Case::told(&fed_by(&["a", "b"], &["c"]));
    assert_eq!(case.step(), ["link a", "link b"]);
    assert_eq!(case.plain_step().waiting_on, Some(FetchWait::Answers));
}

#[test]
fn a_silent_feed_is_replaced_by_a_spare_and_blamed() {
    let mut case = Case::told(&fed_by(&["a"], &["b"]));
    case.step();
    case.hears_from("a");
    let silence = Limits::default().silence_ms_max;
    assert_eq!(case.pass(silence), NONE);
    assert_eq!(case.pass(100), ["cancel link a", "link b"]);
    let report = case.fetcher.reports().remove(0);
    assert_eq!(report.source, SourceName::Server(id("a")));
    assert_eq!((report.failures, report.offences[&Offence::Silent]), (1, 1));
}

#[test]
fn one_that_did_not_listen_blames_nobody() {
    let mut case = Case::told(&fed_by(&["a"], &["b"]));
    case.step();
    case.hears_from("a");
    case.now_ms += 5_000;
    assert_eq!(case.step(), NONE);
    case.hears_from("a");
    assert_eq!(case.pass(300), NONE);
}

#[test]
fn the_old_feed_sends_until_the_new_one_does() {
    let mut case = Case::told(&fed_by(&["a"], &[]));
    case.step();
    case.hears_from("a");
    case.hear(&fed_by(&["b"], &[]));
    assert_eq!(case.step(), ["link b"]);
    case.hears_from("a");
    case.now_ms += 50;
    assert_eq!(case.step(), NONE);
    case.hears_from("b");
    assert_eq!(case.step(), ["cancel link a"]);
}

#[test]
fn a_feed_that_has_nothing_new_is_left_for_the_spare() {
    let mut case = Case::told(&fed_by(&["a"], &["b"]));
    case.step();
    case.ends("a", None, 0);
    assert_eq!(case.step(), ["link b"]);
    assert_eq!(case.fetcher.reports()[0].failures, 0, "nobody's fault");
}

#[test]
fn without_a_leader_the_heir_alone_goes_on_and_feeds_the_head() {
    let mut heir = Case::told(&Guidance { heir: true, ..fed_by(&["a"], &[]) });
    let mut head = Case::told(&Guidance { heir_at: Some(source("b")), ..Guidance::default() });
    let mut other = Case::told(&fed_by(&["a"], &[]));
    heir.now_ms = Limits::default().no_leader_ms;
    (head.now_ms, other.now_ms) = (heir.now_ms, heir.now_ms);
    assert_eq!(heir.step(), ["link a", "m0 0..16", "m0 16..32"]);
    assert_eq!(head.step(), ["link b"]);
    assert_eq!(other.step(), ["link a"]);
}

#[test]
fn a_server_that_was_never_told_anything_waits_for_a_leader_and_then_follows_its_order() {
    let mut case = Case::new(&["a", "b"], true);
    assert_eq!(case.step(), NONE);
    assert_eq!(case.plain_step().waiting_on, Some(FetchWait::Holder));
    case.now_ms = Limits::default().no_leader_ms;
    assert_eq!(case.step(), ["link a"]);
    case.ends("a", Some(Failure::Unreachable), 0);
    assert_eq!(case.step(), ["link b"]);
    case.ends("b", Some(Failure::Unreachable), 0);
    assert_eq!(case.step(), ["m0 0..16", "m0 16..32"], "no holder is usable");
    case.hear(&fed_by(&["c"], &[]));
    assert_eq!(case.step(), ["link c"], "a leader at last");
}

#[test]
fn without_a_leader_a_holder_that_brings_nothing_is_left_for_the_next() {
    let mut case = Case::alone(&["a", "b"], false);
    assert_eq!(case.step(), ["link a"]);
    let mut asked = Vec::new();
    for _ in 0..Limits::default().pull_after_ms / 50 {
        case.hears_from("a");
        asked.extend(case.pass(50));
    }
    assert_eq!(asked, ["cancel link a", "link b"]);
}

#[test]
fn without_permission_no_mirror_is_asked() {
    let mut case = Case::alone(&["a"], false);
    case.step();
    case.ends("a", Some(Failure::Unreachable), 0);
    let step = case.plain_step();
    assert_eq!(step.effects, []);
    assert!(matches!(step.waiting_on, Some(FetchWait::Sources { .. })), "{step:?}");
    let mut case = Case::alone(&[], false);
    assert_eq!(case.plain_step().waiting_on, Some(FetchWait::Holder));
}

#[test]
fn feeds_that_bring_nothing_are_left_for_a_holder_until_the_leader_names_others() {
    let mut case = Case::new(&["holder"], false);
    case.hear(&fed_by(&["a"], &[]));
    case.step();
    let mut asked = Vec::new();
    while case.now_ms < Limits::default().pull_after_ms {
        case.hears_from("a");
        asked.extend(case.pass(50));
    }
    assert_eq!(asked, ["link holder"]);
    case.hears_from("holder");
    assert_eq!(case.step(), ["cancel link a"]);
    case.have.insert(0);
    assert_eq!(case.step(), NONE, "it stays with the one that brings something");
    case.hear(&fed_by(&["b"], &[]));
    assert_eq!(case.step(), ["link b"]);
    let lease = vec![run(500, 4)];
    case.hear(&Guidance { lease, ..fed_by(&["b"], &[]) });
    case.now_ms += 60_000;
    assert!(case.step().contains(&"m0 500..504".to_owned()), "a lease is never refused");
    // If no server is known to hold it: patience.
    let mut case = Case::told(&fed_by(&["a"], &[]));
    case.step();
    case.hears_from("a");
    case.now_ms = 10_000;
    assert_eq!(case.step(), NONE);
}

#[test]
fn only_a_server_that_could_have_asked_somebody_is_late() {
    let late = Limits::default().give_up_ms + Limits::default().no_leader_ms;
    let mut fed = Case::told(&fed_by(&["a"], &[]));
    let mut head = Case::told(&leased(&[run(0, UNITS)]));
    for case in [&mut fed, &mut head] {
        case.step();
        case.now_ms = late;
        case.step();
    }
    assert!(!fed.fetcher.is_late(late) && head.fetcher.is_late(late));
    head.have.insert(0);
    head.step();
    assert!(!head.fetcher.is_late(late));
}

#[test]
fn those_sent_away_together_do_not_return_together() {
    let mut returns = std::collections::BTreeSet::new();
    for random in 0..100_u64 {
        let mut case = Case::told(&leased(&[run(0, UNITS)]));
        case.step();
        let (id, ..) = case.in_flight[0];
        let failure = Some((Failure::Busy { retry_after_ms: 10_000 }, String::new()));
        let outcome = Outcome { failure, ..Outcome::default() };
        case.fetcher.ended(id, outcome, 1_000, random * 1_000_003);
        let back = case.plain_step().wake_at_ms.unwrap();
        assert!((11_000..=16_000).contains(&back), "{back}");
        returns.insert(back);
    }
    assert!(returns.len() > 50, "{returns:?}");
}

#[test]
fn an_offender_is_remembered_after_nobody_names_it_any_more() {
    let mut case = Case::told(&fed_by(&["bad"], &[]));
    case.step();
    case.ends("bad", Some(Failure::Misbehaved(Offence::WrongLength)), 0);
    case.hear(&fed_by(&["good"], &[]));
    let report = case.fetcher.reports().remove(0);
    assert_eq!((report.offences[&Offence::WrongLength], report.failures), (1, 0));
    for n in 0..200 {
        let name = format!("s{n}");
        case.hear(&fed_by(&[&name], &[]));
        case.step();
        case.ends(&name, Some(Failure::Misbehaved(Offence::WrongLength)), 0);
    }
    assert!(case.fetcher.reports().len() <= 66, "bounded");
}

#[test]
fn wrong_bytes_pause_a_source_longer_each_time_and_a_new_address_does_not_help() {
    let mut case = Case::told(&fed_by(&["bad"], &[]));
    let pause = Limits::default().wrong_bytes_ms;
    for times in [1, 2, 4] {
        assert_eq!(case.step(), ["link bad"]);
        case.ends("bad", Some(Failure::Misbehaved(Offence::WrongBytes)), 0);
        let mut moved = fed_by(&["bad"], &[]);
        moved.feeds[0].address = format!("elsewhere:{times}");
        case.hear(&moved);
        case.now_ms += pause * times - 1;
        assert_eq!(case.step(), NONE);
        case.now_ms += 1;
    }
}
