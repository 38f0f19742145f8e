use cohort_core::ids::{Digest, Generation, Incarnation, Revision};
use cohort_core::orders::{
    ActivationOrder, AppOrders, Fence, FetchOrder, Orders, Purpose, TrialOrder,
};
use cohort_core::policy::Check;
use cohort_core::release::{Release, Rollback};
use cohort_core::report::{Health, Outcome, Step};
use cohort_core::steps::{AppRecord, BootTime, Reached, StepAction};

use super::{App, Booted, Doing, Effect, Running, Sight, preflight_result, step_of};
use crate::announced::Announced;
use crate::asking::Received;

#[path = "app_trial_test.rs"]
mod app_trial_test;

#[path = "app_kill_test.rs"]
mod kill_test;

const PATIENCE_MS: u64 = 60_000;

fn release(version: &str) -> Release {
    let digest = |kind: u8| Digest::new(format!("{kind:x}").repeat(64)).unwrap();
    let kind = version.as_bytes()[0] & 7;
    Release {
        version: version.parse().unwrap(),
        platform: "intel".parse().unwrap(),
        artifact: digest(kind),
        manifest: digest(kind + 8),
        length: 1,
        unpacked_bytes: 64 << 30,
        entries: 250_000,
        rollback: Rollback::Revert,
    }
}

fn order(generation: u64, version: &str, purpose: Purpose) -> ActivationOrder {
    ActivationOrder {
        fence: Fence { incarnation: Incarnation(1), generation: Generation(generation) },
        release: Some(release(version)),
        undo_to: None,
        purpose,
        avoid: Vec::new(),
        drain_ms: 0,
        min_healthy_ms: 0,
        healthy_deadline_ms: 1_000,
        confirm_within_ms: 30_000,
        warm_up_ms: 0,
        stop_despite_hooks: false,
        checks: Vec::new(),
        hold: None,
    }
}

fn orders(activation: Option<ActivationOrder>, run: Option<&str>) -> AppOrders {
    AppOrders {
        app: "web".parse().unwrap(),
        fetch: Vec::new(),
        activation,
        run: run.map(release),
        owes: false,
        in_service: Some(run.is_some()),
        checks: Vec::<Check>::new(),
        trial: None,
        keep: Vec::new(),
        holds: Vec::new(),
    }
}

/// These orders, requested at this time.
fn received(orders: &AppOrders, asked_ms: u64) -> Received {
    let orders = Orders {
        group: "intel.a".parse().unwrap(),
        incarnation: Incarnation(1),
        server: "s1".parse().unwrap(),
        apps: vec![orders.clone()],
        member: None,
        members: Vec::new(),
        heard: cohort_core::ids::BootEpoch(0),
    };
    Received { orders, asked_ms, valid_ms: 0, leader: None, voters: Default::default() }
}

fn now(ms: u64) -> BootTime<'static> {
    BootTime { boot: "a", ms }
}

/// All inputs of the tests in one place.
struct World {
    app: App,
    record: AppRecord,
    orders: Option<AppOrders>,
    health: Option<Health>,
    trial: Option<Health>,
    refused: bool,
    killed: bool,
    room: bool,
    confirmed: Option<Fence>,
    ms: u64,
}

impl World {
    /// An agent that has just started; `version` is running.
    fn new(version: &str) -> World {
        let mut record = AppRecord::default();
        record.local.current = Some(release(version));
        World {
            app: App::new(0, PATIENCE_MS, Booted { in_service: true, started: false }),
            record,
            orders: None,
            health: None,
            trial: None,
            refused: false,
            killed: false,
            room: true,
            confirmed: None,
            ms: 0,
        }
    }

    fn see<T>(&mut self, see: impl FnOnce(&mut App, &Sight<'_>) -> T) -> T {
        let held = [release("1.0.0").artifact, release("2.0.0").artifact];
        let sight = Sight {
            now: now(self.ms),
            orders: self.orders.as_ref(),
            orders_fresh: true,
            refused: self.refused,
            killed: self.killed,
            confirmed: self.confirmed,
            record: &self.record,
            reached: Reached::new(0),
            held: &held,
            health: self.health.as_ref(),
            trial: self.trial.as_ref(),
            room: self.room,
            room_for_health: self.room,
        };
        see(&mut self.app, &sight)
    }

    fn look(&mut self) -> Vec<Effect> {
        self.see(App::look)
    }

    fn reports(&mut self) -> Vec<Outcome> {
        let reports = self.look().into_iter().filter_map(|effect| match effect {
            Effect::Report { outcome, .. } => Some(outcome),
            _ => None,
        });
        reports.collect()
    }
}

#[test]
fn what_the_start_found_is_told_once_when_the_group_speaks_of_the_app() {
    let mut world = World::new("1.0.0");
    assert_eq!(world.reports(), []);
    world.orders = Some(orders(None, None));
    let found = Outcome::Found { release: Some(release("1.0.0")), in_service: true };
    assert_eq!(world.reports(), std::slice::from_ref(&found));
    assert_eq!(world.reports(), [], "not twice, although the group has not written it down yet");
    world.ms = 5_000;
    assert_eq!(world.reports(), [found], "but again while the group believes something else");
    world.orders = Some(orders(None, Some("1.0.0")));
    world.ms = 10_000;
    assert_eq!(world.reports(), []);
}

#[test]
fn a_change_that_went_on_before_the_group_spoke_is_not_taken_back() {
    let mut world = World::new("1.0.0");
    world.record.accept(order(1, "2.0.0", Purpose::Wave), Step::Prepare, |_| true, now(0));
    world.record.begin(Step::Stop, 2, now(0));
    let booted = Booted { in_service: false, started: false };
    world.app = App::new(0, PATIENCE_MS, booted);
    let _ = world.look();
    world.record.done(Step::Switch, 1);
    world.record.done(Step::Start, 1);
    world.orders = Some(orders(Some(order(1, "2.0.0", Purpose::Wave)), Some("1.0.0")));
    let found = Outcome::Found { release: Some(release("2.0.0")), in_service: false };
    assert!(world.reports().contains(&found));
}

#[test]
fn a_group_that_believes_something_else_is_told_what_is_true() {
    let mut world = World::new("1.0.0");
    let believing = |in_service| Some(AppOrders { in_service, ..orders(None, Some("1.0.0")) });
    world.orders = believing(Some(true));
    world.reports();
    world.ms = 5_000;
    assert_eq!(world.reports(), []);
    world.orders = believing(Some(false));
    let serves = Outcome::Health { in_service: true, reason: String::new() };
    assert_eq!(world.reports(), std::slice::from_ref(&serves));
    assert_eq!(world.reports(), [], "the group may not have written it down yet");
    world.ms = 10_000;
    assert_eq!(world.reports(), [serves]);
    // It was lost in a change that it never heard of.
    world.orders = believing(None);
    world.ms = 15_000;
    let found = Outcome::Found { release: Some(release("1.0.0")), in_service: true };
    assert_eq!(world.reports(), [found]);
}

#[test]
fn a_server_whose_change_was_withdrawn_before_its_drain_says_that_it_serves() {
    let mut world = World::new("1.0.0");
    world.orders = Some(orders(None, Some("1.0.0")));
    world.look();
    // The kill switch gave it back to its users, and the group has lost sight of it meanwhile.
    world.record.accept(order(1, "2.0.0", Purpose::Wave), Step::Prepare, |_| true, now(0));
    world.record.done(Step::Prepare, 1);
    world.killed = true;
    world.orders = Some(AppOrders { in_service: Some(false), ..orders(None, Some("1.0.0")) });
    world.ms = 5_000;
    let serves = Outcome::Health { in_service: true, reason: String::new() };
    assert_eq!(world.reports(), [serves]);
}

#[test]
fn a_server_that_left_traffic_for_a_change_that_is_no_longer_ordered_says_that_it_is_out() {
    let mut world = World::new("1.0.0");
    world.orders = Some(orders(None, Some("1.0.0")));
    world.look();
    world.record.accept(order(1, "2.0.0", Purpose::Wave), Step::Prepare, |_| true, now(0));
    world.record.begin(Step::Drain, 1, now(0));
    world.record.done(Step::Drain, 1);
    world.ms = 5_000;
    let found = Outcome::Found { release: Some(release("1.0.0")), in_service: false };
    assert_eq!(world.reports(), [found]);
    world.orders = Some(AppOrders { in_service: Some(false), ..orders(None, Some("1.0.0")) });
    world.ms = 10_000;
    assert_eq!(world.reports(), [], "the group knows");
}

#[test]
fn a_server_that_owes_after_a_start_does_not_claim_to_serve() {
    let mut world = World::new("1.0.0");
    world.orders = Some(AppOrders { owes: true, ..orders(None, Some("1.0.0")) });
    let found = Outcome::Found { release: Some(release("1.0.0")), in_service: false };
    assert_eq!(world.reports(), [found]);

    // It took traffic because its group was out of reach for too long.
    let mut alone = World::new("1.0.0");
    alone.ms = PATIENCE_MS;
    assert!(alone.look().contains(&Effect::TakeTraffic));
    alone.orders = Some(AppOrders { owes: true, ..orders(None, Some("1.0.0")) });
    let found = Outcome::Found { release: Some(release("1.0.0")), in_service: true };
    assert_eq!(alone.reports(), [found]);
}

#[test]
fn health_that_flaps_is_reported_at_a_bounded_rate() {
    let mut world = World::new("1.0.0");
    world.orders = Some(orders(None, Some("1.0.0")));
    world.look();
    let mut reports = 0;
    for ms in 0..10_000 {
        world.ms = ms;
        let in_service = ms % 2 == 0;
        world.health = Some(Health { in_service, reason: "flaps".into() });
        reports += world.reports().len();
    }
    assert!(reports <= 11, "{reports} reports in ten seconds");
}

#[test]
fn traffic_comes_with_orders_that_leave_nothing_owed_or_after_patience() {
    let mut world = World::new("1.0.0");
    assert!(!world.look().contains(&Effect::TakeTraffic));
    world.orders = Some(AppOrders { owes: true, ..orders(None, Some("1.0.0")) });
    assert!(!world.look().contains(&Effect::TakeTraffic), "what is owed comes first");
    world.orders = Some(orders(None, Some("1.0.0")));
    assert!(world.look().contains(&Effect::TakeTraffic));
    assert!(!world.look().contains(&Effect::TakeTraffic), "once");

    let mut alone = World::new("1.0.0");
    alone.ms = PATIENCE_MS - 1;
    assert!(!alone.look().contains(&Effect::TakeTraffic));
    alone.ms = PATIENCE_MS;
    assert!(alone.look().contains(&Effect::TakeTraffic));

    // A removed server, or a copy: its group answers, and does not take it for one of its own.
    let mut refused = World::new("1.0.0");
    (refused.refused, refused.ms) = (true, 10 * PATIENCE_MS);
    assert!(!refused.look().contains(&Effect::TakeTraffic));
}

#[test]
fn a_step_out_of_traffic_ends_the_running_checks_and_comes_last() {
    let ordered = |release: Option<Release>, first| {
        let mut world = World::new("1.0.0");
        world.orders = Some(orders(None, Some("1.0.0")));
        let _ = world.look();
        let next = ActivationOrder { release, ..order(1, "2.0.0", Purpose::Wave) };
        world.orders = Some(orders(Some(next.clone()), Some("1.0.0")));
        let accept = StepAction::Accept { order: next, step: first };
        let mut effects = world.look();
        let last = effects.pop();
        assert!(matches!(last, Some(Effect::Act { action, .. }) if action == accept));
        effects
    };
    assert_eq!(ordered(None, Step::Drain), [Effect::Unwatch, Effect::Unfit(None)]);
    assert_eq!(ordered(Some(release("2.0.0")), Step::Prepare), [], "what runs is still watched");
}

#[test]
fn without_room_for_reports_no_step_begins() {
    let mut world = World::new("1.0.0");
    world.orders = Some(orders(Some(order(1, "2.0.0", Purpose::Wave)), Some("1.0.0")));
    world.room = false;
    assert_eq!(world.look(), [Effect::WriteDown]);
    world.room = true;
    assert!(matches!(world.look().last(), Some(Effect::Act { .. })));
}

#[test]
fn an_outcome_is_told_once_and_a_restarted_agent_tells_it_again() {
    let mut world = World::new("1.0.0");
    world.orders = Some(orders(None, Some("1.0.0")));
    let _ = world.look();
    world.record.accept(order(1, "2.0.0", Purpose::Wave), Step::Prepare, |_| true, now(0));
    world.record.begin(Step::Start, 1, now(0));
    world.record.done(Step::Start, 1);
    assert_eq!(world.reports(), [Outcome::Applied]);
    assert_eq!(world.reports(), []);
    let found = Outcome::Found { release: Some(release("1.0.0")), in_service: false };
    world.app = App::new(0, PATIENCE_MS, Booted { in_service: false, started: false });
    assert_eq!(world.reports(), [Outcome::Applied, found]);
}

/// It went back on its own while it did not reach the group, and its agent has restarted since:
/// what it does with the first orders is what it says.
#[test]
fn a_server_that_takes_traffic_says_so_although_it_owes() {
    let mut world = World::new("1.0.0");
    world.record.accept(order(1, "2.0.0", Purpose::Wave), Step::Prepare, |_| true, now(0));
    world.record.begin(Step::Check, 1, now(0));
    world.record.undone("the group was not reached".to_owned());
    world.app = App::new(0, PATIENCE_MS, Booted { in_service: true, started: false });
    world.orders = Some(AppOrders { owes: true, ..orders(None, Some("1.0.0")) });
    let effects = world.look();
    assert!(effects.contains(&Effect::TakeTraffic));
    let found = Outcome::Found { release: Some(release("1.0.0")), in_service: true };
    assert!(
        effects.iter().any(|effect| {
            matches!(effect, Effect::Report { outcome, .. } if *outcome == found)
        })
    );
}

/// The machine was without power: its service was started, and takes a while to listen.
#[test]
fn a_service_that_was_started_with_its_machine_serves_once_its_checks_have_passed() {
    let found = |in_service| Outcome::Found { release: Some(release("1.0.0")), in_service };
    let starting = || {
        let mut world = World::new("1.0.0");
        world.app = App::new(0, PATIENCE_MS, Booted { in_service: true, started: true });
        let orders = orders(None, Some("1.0.0"));
        let checks = vec![check("/listens")];
        world.orders = Some(AppOrders { checks, in_service: None, ..orders });
        assert!(!world.look().contains(&Effect::TakeTraffic));
        let refused = "connection refused".to_owned();
        world.health = Some(Health { in_service: false, reason: refused });
        world.ms += 10_000;
        assert_eq!(world.reports(), [], "neither that it serves, nor that it is broken");
        world
    };
    let mut world = starting();
    world.health = Some(Health { in_service: true, reason: String::new() });
    let effects: Vec<Effect> = (0..3).flat_map(|_| world.look()).collect();
    assert!(effects.contains(&Effect::TakeTraffic), "{effects:?}");
    assert!(effects.contains(&super::report(found(true))), "{effects:?}");
    let mut world = starting();
    world.ms += cohort_core::report::STARTING_MS_MAX;
    assert!(world.reports().contains(&found(false)));
}

#[test]
fn running_checks_start_with_what_is_known_and_only_news_is_told() {
    let mut world = World::new("1.0.0");
    world.orders = Some(orders(None, Some("1.0.0")));
    let fit = Health { in_service: true, reason: String::new() };
    let watch = Effect::Watch { checks: Vec::new(), first: fit.clone() };
    assert!(world.look().contains(&watch));
    world.health = Some(fit);
    assert_eq!(world.reports(), []);
    world.health = Some(Health { in_service: false, reason: "refused".into() });
    let effects = world.look();
    assert!(effects.contains(&Effect::Unfit(Some("refused".into()))));
    assert!(effects.iter().any(|effect| matches!(
        effect,
        Effect::Report { outcome: Outcome::Health { in_service: false, .. }, .. }
    )));
    assert_eq!(world.reports(), []);
}

fn check(path: &str) -> Check {
    let json = serde_json::json!({ "type": "http", "path": path });
    serde_json::from_value(json).unwrap()
}

fn health(in_service: bool) -> Option<Health> {
    let reason = if in_service { "" } else { "refused" };
    Some(Health { in_service, reason: reason.into() })
}

#[test]
fn mended_checks_bring_a_server_back_and_until_then_it_stays_out() {
    let mut world = World::new("1.0.0");
    let mut ordered = orders(None, Some("1.0.0"));
    world.orders = Some(ordered.clone());
    let _ = world.look();
    world.health = health(false);
    assert!(world.look().contains(&Effect::Unfit(Some("refused".into()))));
    world.ms += 60_000;
    (ordered.checks, ordered.in_service) = (vec![check("/a")], Some(false));
    world.orders = Some(ordered);
    let first = health(false).unwrap();
    let effects = world.look();
    assert!(effects.contains(&Effect::Watch { checks: vec![check("/a")], first }));
    assert!(effects.contains(&Effect::Unfit(Some("refused".into()))));
    world.health = health(true);
    let effects = world.look();
    assert!(effects.contains(&Effect::Unfit(None)));
    let back = Outcome::Health { in_service: true, reason: String::new() };
    assert!(effects.contains(&super::report(back)));
}

#[test]
fn health_is_reported_next_to_a_step_that_leaves_the_checks_in_force() {
    let mut world = World::new("1.0.0");
    world.orders = Some(orders(None, Some("1.0.0")));
    world.health = health(true);
    let _ = world.look();
    world.orders = Some(orders(Some(order(1, "2.0.0", Purpose::Wave)), Some("1.0.0")));
    let effects = world.look();
    let Some(Effect::Act { action, .. }) = effects.last() else { panic!("{effects:?}") };
    assert_eq!(step_of(action), Some(Step::Prepare));
    let beside = |world: &mut World, fit| {
        world.ms += 100;
        world.app.look_beside(world.ms, health(fit).as_ref(), true).len()
    };
    assert_eq!(beside(&mut world, true), 0, "no news");
    assert_eq!(beside(&mut world, false), 2, "the group and load balancers are told");
    assert_eq!(beside(&mut world, false), 0);
    world.ms += 60_000;
    assert_eq!(beside(&mut world, true), 2);
    world.app.watched = None;
    assert_eq!(beside(&mut world, false), 0, "out of traffic, the step decides");
}

#[test]
fn one_hiccup_is_two_reports_and_a_service_that_flaps_is_reported_less_and_less() {
    let mut world = World::new("1.0.0");
    world.orders = Some(orders(None, Some("1.0.0")));
    world.health = health(true);
    let _ = world.look();
    // As the group acts on what it hears.
    let reports_in = |world: &mut World, ms: u64, fit: &dyn Fn(u64) -> bool| {
        let (mut reports, end_ms) = (0, world.ms + ms);
        while world.ms < end_ms {
            world.ms += 100;
            world.health = health(fit(world.ms));
            for outcome in world.reports() {
                if let Outcome::Health { in_service, .. } = outcome {
                    world.orders.as_mut().unwrap().in_service = Some(in_service);
                }
                reports += 1;
            }
        }
        reports
    };
    assert_eq!(reports_in(&mut world, 6_000, &|_| false), 1);
    assert_eq!(reports_in(&mut world, 60_000, &|_| true), 1);
    let flaps = |ms: u64| (ms / 500).is_multiple_of(2);
    assert!(reports_in(&mut world, 600_000, &flaps) < 50, "two in 30 seconds, once it is slow");
}

#[test]
fn waiting_for_confirmation_is_said_and_nothing_is_collected_in_a_change() {
    let mut world = World::new("1.0.0");
    let next = order(1, "2.0.0", Purpose::Wave);
    world.record.accept(next.clone(), Step::Prepare, |_| true, now(0));
    world.record.done(Step::Check, 1);
    world.orders = Some(orders(Some(next), Some("1.0.0")));
    let effects = world.look();
    assert!(effects.contains(&Effect::Doing(Some(Doing::Confirming))));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Collect(_))));
}

#[test]
fn bytes_that_are_here_are_not_said_to_be_on_their_way() {
    let mut world = World::new("1.0.0");
    let fetch =
        |version| FetchOrder { release: release(version), from_mirror: true, sources: Vec::new() };
    let doing = |world: &mut World| {
        let doing = world.look().into_iter().find_map(|effect| match effect {
            Effect::Doing(doing) => Some(doing),
            _ => None,
        });
        doing.unwrap()
    };
    let ordered = |version| AppOrders { fetch: vec![fetch(version)], ..orders(None, None) };
    world.orders = Some(ordered("2.0.0"));
    assert_eq!(doing(&mut world), None);
    world.orders = Some(ordered("3.0.0"));
    assert_eq!(doing(&mut world), Some(Doing::Fetching));
}

#[test]
fn a_step_is_interrupted_by_a_newer_order_or_when_the_group_is_out_of_reach() {
    let mut world = World::new("1.0.0");
    let next = order(1, "2.0.0", Purpose::Wave);
    world.record.accept(next.clone(), Step::Prepare, |_| true, now(0));
    world.record.begin(Step::Drain, 1, now(0));
    let run = StepAction::Run { step: Step::Stop, attempt: 1 };
    let running = world.see(|_, sight| Running::new(&run, sight));
    let same = orders(Some(next), None);
    let at = |running: Running, orders: &AppOrders, asked_ms| {
        running.interrupted_at_ms(&"web".parse().unwrap(), Some(&received(orders, asked_ms)))
    };
    assert_eq!(at(running, &same, 0), Some(30_000));
    assert_eq!(at(running, &same, 20_000), Some(50_000), "heard of again");
    assert_eq!(running.interrupted_at_ms(&same.app, None), Some(30_000), "never heard of");
    let newer = orders(Some(order(2, "1.0.0", Purpose::RollBack)), None);
    assert_eq!(at(running, &newer, 0), Some(0));
    let other = AppOrders { app: "db".parse().unwrap(), ..newer };
    assert_eq!(at(running, &other, 0), Some(30_000), "newer orders of another app");
    world.ms = 1_000;
    let later = world.see(|_, sight| Running::new(&run, sight));
    assert_eq!(at(later, &same, 999), at(later, &same, 0), "asked for before the step began");
    world.confirmed = Some(Fence { incarnation: Incarnation(1), generation: Generation(1) });
    let running = world.see(|_, sight| Running::new(&run, sight));
    assert_eq!(at(running, &same, 0), None, "confirmed: nothing to undo");
    let undo = StepAction::Undo { reason: String::new(), attempt: 1 };
    let running = world.see(|_, sight| Running::new(&undo, sight));
    assert_eq!(at(running, &same, 0), None, "going back is not interrupted");
}

#[test]
fn only_pre_flight_checks_that_ended_have_a_result() {
    let mut record = AppRecord::default();
    assert_eq!(preflight_result(Step::Check, &record.local), None);
    record.accept(order(1, "2.0.0", Purpose::Wave), Step::Prepare, |_| true, now(0));
    record.done(Step::Start, 1);
    assert_eq!(preflight_result(Step::Start, &record.local), None);
    record.begin(Step::Check, 1, now(0));
    assert_eq!(preflight_result(Step::Check, &record.local), None, "interrupted");
    record.done(Step::Check, 1);
    assert_eq!(preflight_result(Step::Check, &record.local), Some(true));
    assert_eq!(preflight_result(Step::WarmUp, &record.local), None, "counted before");
    let failure = record.given_up(1);
    record.fail(Step::Check, 1, failure);
    assert_eq!(preflight_result(Step::Check, &record.local), Some(false));
}

#[test]
fn an_artifact_is_announced_once_per_order() {
    let mut announced = Announced::default();
    let fetch = FetchOrder { release: release("1.0.0"), from_mirror: true, sources: Vec::new() };
    let ordered = AppOrders { fetch: vec![fetch], ..orders(None, None) };
    assert_eq!(announced.look([&ordered], |_| false), []);
    let news = [("web".parse().unwrap(), release("1.0.0").artifact)];
    assert_eq!(announced.look([&ordered], |_| true), news);
    assert_eq!(announced.look([&ordered], |_| true), []);
    assert_eq!(announced.look([], |_| true), []);
    assert_eq!(announced.look([&ordered], |_| true), news, "ordered again");
}
