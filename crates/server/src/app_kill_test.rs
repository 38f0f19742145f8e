//! What the kill switch keeps an app from.

use super::*;

#[test]
fn the_kill_switch_gives_traffic_back_to_a_drained_server() {
    let mut world = World::new("1.0.0");
    let next = order(1, "2.0.0", Purpose::Wave);
    world.record.accept(next.clone(), Step::Prepare, |_| true, now(0));
    world.record.begin(Step::Drain, 1, now(0));
    world.record.done(Step::Drain, 1);
    world.orders = Some(orders(Some(next), Some("1.0.0")));
    world.killed = true;
    let undrain = |world: &mut World| {
        world.look().into_iter().find_map(|effect| match effect {
            Effect::Undrain { running } => Some(running),
            _ => None,
        })
    };
    let running = undrain(&mut world).unwrap();
    let interrupted = |generation| {
        let ordered = orders(Some(order(generation, "2.0.0", Purpose::Wave)), None);
        running.interrupted_at_ms(&ordered.app, Some(&received(&ordered, 0)))
    };
    assert_eq!((interrupted(1), interrupted(2)), (None, Some(0)), "until something newer");
    world.record.undrained();
    assert_eq!(undrain(&mut world), None);
}

#[test]
fn the_kill_switch_starts_no_other_checks() {
    let mut world = World::new("1.0.0");
    let checks = |port| vec![check(&format!("a:{port}"))];
    let with =
        |checks: Vec<Check>, trial| AppOrders { checks, trial, ..orders(None, Some("1.0.0")) };
    let trial = || Some(TrialOrder { checks: checks(3), revision: Revision(9), passes: None });
    let starts = |world: &mut World| {
        let started = |effect: &Effect| matches!(effect, Effect::Watch { .. } | Effect::Try { .. });
        world.look().iter().filter(|effect| started(effect)).count()
    };
    world.orders = Some(with(checks(1), None));
    assert_eq!(starts(&mut world), 1);
    world.killed = true;
    world.orders = Some(with(checks(2), trial()));
    assert_eq!(starts(&mut world), 0);
    world.killed = false;
    assert_eq!(starts(&mut world), 2);
    world.killed = true;
    assert!(world.look().contains(&Effect::EndTrial));
}
