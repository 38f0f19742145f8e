//! Changed checks on trial.

use super::*;

/// A policy that changes checks under the kill switch starts nothing, and what is tried ends.
#[test]
fn under_the_kill_switch_no_changed_check_is_tried() {
    let mut world = World::new("1.0.0");
    let mut ordered = orders(None, Some("1.0.0"));
    world.orders = Some(ordered.clone());
    let _ = world.look();
    world.health = health(true);
    let checks = vec![check("/a")];
    ordered.trial =
        Some(TrialOrder { revision: Revision(2), checks: checks.clone(), passes: None });
    world.orders = Some(ordered);
    world.killed = true;
    assert!(!world.look().iter().any(|effect| matches!(effect, Effect::Try { .. })));
    world.killed = false;
    assert!(world.look().contains(&Effect::Try { checks: checks.clone() }));
    world.killed = true;
    assert!(world.look().contains(&Effect::EndTrial));
    world.killed = false;
    assert!(world.look().contains(&Effect::Try { checks }), "it starts over");
}

#[test]
fn changed_checks_are_tried_next_to_those_that_decide() {
    let mut world = World::new("1.0.0");
    let mut ordered = orders(None, Some("1.0.0"));
    world.orders = Some(ordered.clone());
    let _ = world.look();
    world.health = health(true);
    let trial = TrialOrder { revision: Revision(2), checks: vec![check("/a")], passes: None };
    ordered.trial = Some(trial.clone());
    world.orders = Some(ordered.clone());
    assert!(world.look().contains(&Effect::Try { checks: trial.checks.clone() }));
    assert_eq!(world.reports(), [], "not known yet");
    world.trial = health(false);
    let effects = world.look();
    let failed = Outcome::Tried { revision: Revision(2), failed: Some("refused".into()) };
    assert!(effects.contains(&super::super::report(failed)));
    assert!(!effects.iter().any(|effect| matches!(effect, Effect::Unfit(_))));
    assert_eq!(world.reports(), []);
    ordered.trial.as_mut().unwrap().passes = Some(false);
    world.orders = Some(ordered.clone());
    world.ms += 60_000;
    assert_eq!(world.reports(), [], "told once");
    world.trial = health(true);
    assert_eq!(world.reports(), [Outcome::Tried { revision: Revision(2), failed: None }]);
    // The group lets it take them.
    (ordered.checks, ordered.trial) = (trial.checks.clone(), None);
    world.orders = Some(ordered);
    let effects = world.look();
    let (checks, first) = (trial.checks, health(true).unwrap());
    assert!(effects.contains(&Effect::Watch { checks, first }));
    assert!(effects.contains(&Effect::EndTrial));
}
