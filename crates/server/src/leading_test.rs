use std::collections::{BTreeMap, BTreeSet};

use cohort_core::capacity::COUNTED_ON_MS;
use cohort_core::command::{CLOCK_STEP_MS_MAX, COMMAND_VERSION};
use cohort_core::gate::RegistryView;
use cohort_core::ids::{ClockMs, GroupId, Incarnation, MemberId, Revision, ServerId};
use cohort_core::machine::DiskSpace;
use cohort_core::placement::{Placed, Placement};
use cohort_core::refused::{Refused, Role, WhyRefused};
use cohort_core::state::Process;
use cohort_core::waiting::{Placing, WaitingOn};
use cohort_core::{Body, Command, Plan, State};

use crate::contacts::Contacts;
use crate::leading::{Heard, Leading, PLAN_EVERY_MS};
use crate::membership::{Founder, founding_state};

const HOUR_MS: u64 = 3_600_000;
const WEEK_MS: u64 = 7 * 24 * 3_600_000;

fn leading() -> Leading {
    let mut leading = Leading::new(ServerId::new("s1").unwrap(), None);
    leading.began(1_000);
    leading
}

fn state() -> State {
    State::new(GroupId::new("web").unwrap(), Incarnation(1))
}

fn plan_at(leading: &mut Leading, now_ms: u64) -> Plan {
    leading.plan(now_ms, &state(), &Contacts::default())
}

/// A group of three servers with members.
fn of_three() -> State {
    let mut state = state();
    for n in [1, 2, 3] {
        let server = ServerId::new(format!("s{n}")).unwrap();
        let address = format!("{server}:1");
        for body in [
            Body::AddServer {
                server: server.clone(),
                address,
                rack: None,
                process: Process::default(),
            },
            Body::AllocateMember { server },
        ] {
            let (actor, incarnation) = ("test".into(), Incarnation(1));
            let version = COMMAND_VERSION;
            let command = Command { version, incarnation, actor, request: None, body };
            state.apply(&command).unwrap();
        }
    }
    state
}

/// A voter whose agent reaches another member, and whose own member the leader does not hear.
#[test]
fn a_voter_that_is_mute_counts_as_silent_and_is_named() {
    let mut leading = leading();
    let (mut contacts, other) = (Contacts::default(), ServerId::new("s2").unwrap());
    let now_ms = 1_000 + COUNTED_ON_MS;
    contacts.heard(now_ms, &other, 0, BTreeMap::new());
    for (heard_ms, mute) in [(now_ms - 300, false), (500, true)] {
        let heard = Heard { contacts: &contacts, members: [(other.clone(), heard_ms)].into() };
        let voters = [1, 2, 3].map(MemberId).into();
        leading.place(now_ms, &of_three(), Placed { voters, ..Placed::default() }, &heard);
        assert_eq!(leading.mute().contains(&other), mute);
    }
}

#[test]
fn plans_when_there_is_news_and_when_the_last_plan_is_old() {
    let mut leading = leading();
    assert!(leading.due(1_000, 0), "a new leader plans at once");
    let _ = plan_at(&mut leading, 1_000);
    assert!(!leading.due(1_001, 0));
    leading.state_changed();
    assert!(leading.due(1_001, 0));
    let _ = plan_at(&mut leading, 1_001);
    assert!(leading.due(1_001 + PLAN_EVERY_MS, 0));
}

#[test]
fn waits_until_its_own_proposals_are_applied() {
    let mut leading = leading();
    let _ = plan_at(&mut leading, 1_000);
    leading.proposed(1_000, 7, &Body::AdvanceClock { to: ClockMs(1) });
    leading.state_changed();
    assert!(!leading.due(2_000, 6));
    assert!(leading.due(2_000, 7));
}

#[test]
fn an_earlier_leadership_leaves_nothing_behind_but_the_kill_switch() {
    let mut leading = leading();
    leading.registry(Some(RegistryView::default()));
    leading.offers(1_000, BTreeMap::new(), vec![WhyRefused::NoMirror.into()], Ok(()));
    assert!(leading.killed(1_000, Some("stop".into())));
    assert_eq!(leading.registry_answers(), Some(true));
    leading.ended();
    assert!(!leading.due(2_000, 0), "it does not plan any more");
    assert_eq!(leading.registry_answers(), None);
    leading.began(3_000);
    assert_eq!(leading.registry_answers(), Some(false));
    assert!(leading.refusals().is_empty());
    assert_eq!(leading.why_killed(), Some("stop"));
    assert!(!leading.killed(3_000, Some("stop".into())), "no news");
}

#[test]
fn the_same_observation_again_is_no_news() {
    let mut leading = leading();
    leading.registry(Some(RegistryView::default()));
    let _ = plan_at(&mut leading, 1_000);
    leading.registry(Some(RegistryView::default()));
    leading.offers(1_000, BTreeMap::new(), Vec::new(), Ok(()));
    assert!(!leading.due(1_001, 0));
    leading.registry(None);
    assert!(leading.due(1_001, 0));
}

#[test]
fn an_idle_group_writes_nothing_and_its_clock_catches_up_with_the_next_entry() {
    let mut leading = leading();
    let (hour_later, days_later) = (1_000 + HOUR_MS, 1_000 + 2 * CLOCK_STEP_MS_MAX);
    (1_000..=hour_later).step_by(1_000).for_each(|now_ms| {
        leading.tick(now_ms);
    });
    assert_eq!(plan_at(&mut leading, hour_later).commands, []);
    let clock = leading.clock_due(hour_later, &state(), 0);
    let hour = ClockMs(HOUR_MS);
    assert_eq!(clock, Some(Body::AdvanceClock { to: hour }));
    leading.proposed(hour_later, 1, &clock.unwrap());
    assert_eq!(leading.clock_due(hour_later + 10, &state(), 0), None, "one is in flight");
    assert_eq!(leading.clock_due(hour_later + 10, &state(), 1), None, "not worth an entry");
    // What exceeds the step of one entry is dropped.
    (hour_later..=days_later).step_by(1_000).for_each(|now_ms| {
        leading.tick(now_ms);
    });
    assert_eq!(plan_at(&mut leading, days_later).commands, []);
    let clock = leading.clock_due(days_later, &state(), 1).unwrap();
    assert_eq!(clock, Body::AdvanceClock { to: ClockMs(CLOCK_STEP_MS_MAX) });
    leading.proposed(days_later, 2, &clock);
    assert_eq!(leading.clock(&state()), ClockMs(0), "nothing is left to be told");
}

#[test]
fn the_clock_goes_on_under_a_new_leader_from_where_the_last_entry_left_it() {
    let mut leading = Leading::new(ServerId::new("s2").unwrap(), None);
    leading.clock_was_set(1_000);
    leading.began(9_000);
    leading.tick(9_500);
    assert_eq!(leading.clock(&state()), ClockMs(8_500));
}

#[test]
fn a_pause_of_the_leader_makes_no_server_silent() {
    let server = |name: &str| ServerId::new(name).unwrap();
    let mut contacts = Contacts::default();
    contacts.heard(900, &server("s1"), 0, BTreeMap::new());
    let mut leading = leading();
    leading.tick(1_000);
    let woken_ms = 1_000 + WEEK_MS;
    leading.tick(woken_ms);
    contacts.heard(woken_ms + 40, &server("s2"), 0, BTreeMap::new());
    let _ = leading.plan(woken_ms + 50, &state(), &contacts);
    // No server is silent for longer than this leader has listened again; but one not heard since
    // counts as unheard: a lost server stays lost.
    assert_eq!(leading.seen().leading_for_ms, 50);
    assert_eq!(leading.seen().contact_age_ms[&server("s1")], WEEK_MS + 150);
    assert_eq!(leading.seen().contact_age_ms[&server("s2")], 10);
}

#[test]
fn a_server_that_joins_is_heard_with_that() {
    let server = |name: &str| ServerId::new(name).unwrap();
    let founder = Founder {
        server: server("s2"),
        address: "s2:1".into(),
        rack: None,
        process: Process::default(),
        labels: BTreeMap::new(),
        platform: "intel".parse().unwrap(),
    };
    let state = founding_state(GroupId::new("web").unwrap(), Incarnation(1), founder);
    let mut joined = state.clone();
    let known = joined.servers[&server("s2")].clone();
    joined.servers.insert(server("s3"), known);
    let mut leading = leading();
    let _ = leading.plan(1_000, &state, &Contacts::default());
    let _ = leading.plan(60_000, &joined, &Contacts::default());
    let _ = leading.plan(61_000, &joined, &Contacts::default());
    assert_eq!(leading.seen().contact_age_ms, BTreeMap::from([(server("s3"), 1_000)]));
}

#[test]
fn the_clock_stands_still_in_a_pause_and_while_everything_is_stopped() {
    let mut leading = leading();
    leading.tick(1_000);
    leading.tick(2_000);
    let woken_ms = 2_000 + WEEK_MS;
    let clock = leading.clock_due(woken_ms, &state(), 0);
    assert_eq!(clock, Some(Body::AdvanceClock { to: ClockMs(1_000) }));
    assert_eq!(leading.clock(&state()), ClockMs(1_000));
    leading.killed(woken_ms, Some("stop".into()));
    let mut now_ms = woken_ms;
    while now_ms < woken_ms + HOUR_MS {
        now_ms += 1_000;
        leading.tick(now_ms);
    }
    assert_eq!(leading.clock_due(now_ms, &state(), 0), None);
    leading.killed(now_ms + 900, None);
    assert_eq!(leading.clock(&state()), ClockMs(1_000), "what was stopped to the last counts not");
}

#[test]
fn mirrors_that_are_unreachable_for_a_moment_are_not_reported() {
    let mut leading = leading();
    let plan_after = |leading: &mut Leading, now_ms, refreshed| {
        leading.offers(now_ms, BTreeMap::new(), Vec::new(), refreshed);
        let _ = plan_at(leading, now_ms);
        leading.seen().not_refreshed.clone()
    };
    let unreachable = || WhyRefused::Unreachable { file: "timestamp.json".into() };
    let away = || Err(unreachable().into());
    assert_eq!(plan_after(&mut leading, 1_000, away()), None);
    assert_eq!(plan_after(&mut leading, 30_999, away()), None);
    let told = plan_after(&mut leading, 31_000, away());
    assert_eq!(told, Some((unreachable().into(), 30_000)), "since the first failure");
    assert_eq!(plan_after(&mut leading, 32_000, Ok(())), None);
    assert_eq!(plan_after(&mut leading, 33_000, away()), None, "it starts over");
    // What a clock, a key or the configuration is to blame for does not pass.
    for why in [WhyRefused::Expired { role: Role::Timestamp, ago_s: 9 }, WhyRefused::NoMirror] {
        let told = plan_after(&mut leading, 34_000, Err(why.clone().into()));
        assert_eq!(told, Some((why.into(), 1_000)));
    }
}

#[test]
fn a_change_of_voters_that_did_not_start_is_tried_again() {
    let (mut leading, state) = (leading(), of_three());
    let (voters, standbys) = ([MemberId(1)].into(), BTreeSet::from([MemberId(2), MemberId(3)]));
    let placed = Placed { voters, caught_up: standbys.clone(), standbys, changing: false };
    let waits = Placing::Majority { heard: 1, voters: 3 };
    for now_ms in [1_000, 1_200, 1_400] {
        let step = {
            let heard = Heard { contacts: &Contacts::default(), members: BTreeMap::new() };
            leading.place(now_ms, &state, placed.clone(), &heard)
        };
        assert!(matches!(step, Some(Placement::Change { .. })), "{step:?}");
        leading.place_waits(now_ms, waits.clone());
        assert_eq!(leading.placing(), Some(&(waits.clone(), 1_000)));
    }
}

fn with_app() -> State {
    let mut state = state();
    let policy = serde_json::json!({ "app": "web", "channel": "stable" });
    let policy = serde_json::from_value(policy).unwrap();
    let body = Body::SetPolicy { policy, revision: Revision(1), proof: Default::default() };
    let (version, incarnation, actor) = (COMMAND_VERSION, Incarnation(1), "ann".to_owned());
    state.apply(&Command { version, incarnation, actor, request: None, body }).unwrap();
    state
}

/// Not since the app rests: people judge by it whether the mirrors are away for too long.
#[test]
fn newer_releases_are_unknown_since_the_first_refresh_that_failed() {
    let (mut leading, state) = (leading(), with_app());
    let refused = || Refused::from(WhyRefused::Unreachable { file: "timestamp.json".into() });
    for now_ms in [11_000, 41_000] {
        leading.offers(now_ms, BTreeMap::new(), Vec::new(), Err(refused()));
    }
    let plan = leading.plan(41_000, &state, &Contacts::default());
    let stale = WaitingOn::NotRefreshed(refused());
    let waiting = plan.waiting.iter().find(|waiting| waiting.on == stale).unwrap();
    assert_eq!((leading.clock(&state), waiting.since), (ClockMs(40_000), ClockMs(10_000)));
}

#[test]
fn a_leader_that_cannot_write_says_what_its_disk_has_and_since_when() {
    let (mut leading, state) = (leading(), with_app());
    for (at_ms, disk) in [(2_000, DiskSpace::Exhausted), (5_000, DiskSpace::ReadOnly)] {
        leading.disk(at_ms, disk);
        leading.disk(at_ms + 500, disk);
        let now_ms = at_ms + 1_000;
        leading.tick(now_ms);
        let waiting = leading.waiting_for_space(now_ms, &state);
        let [waiting] = &waiting[..] else { panic!("{waiting:?}") };
        let leader = ServerId::new("s1").unwrap();
        assert_eq!(waiting.on, WaitingOn::NoSpace { leader, disk });
        assert_eq!(leading.clock(&state).since(waiting.since), 1_000);
    }
}
