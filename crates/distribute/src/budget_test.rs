//! Budgets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::Budget;

/// Bytes that go within `ms` milliseconds, requested in every one of them.
fn taken_in(budget: &Budget, from: Instant, ms: u64, piece: usize) -> usize {
    let steps = (0..ms).map(|step| from + Duration::from_millis(step));
    steps.filter(|now| budget.try_take(piece, *now).is_ok()).count() * piece
}

fn takes(budget: &Budget, piece: usize, now: Instant) -> bool {
    budget.try_take(piece, now).is_ok()
}

#[test]
fn a_limit_holds_over_a_second() {
    for piece in [1_000, 16_384, 65_536, 200_000] {
        let budget = Budget::default();
        budget.set(Some(1_000_000));
        let taken = taken_in(&budget, Instant::now(), 1_000, piece);
        assert!((900_000..1_050_000 + piece).contains(&taken), "{piece}: {taken}");
    }
}

#[test]
fn nothing_goes_in_bursts_after_a_pause() {
    let (budget, now) = (Budget::default(), Instant::now());
    budget.set(Some(1_000_000));
    assert!(takes(&budget, 1_000, now));
    // A minute of silence earns a thirtieth of a second, not a minute's worth.
    let later = now + Duration::from_secs(60);
    let burst = (0..1_000).take_while(|_| takes(&budget, 1_000, later)).count() * 1_000;
    assert!((31_000..=32_000).contains(&burst), "{burst}");
}

#[test]
fn who_waits_is_told_for_how_long() {
    let (budget, now) = (Budget::default(), Instant::now());
    budget.set(Some(1_000_000));
    assert!(takes(&budget, 131_250, now));
    let wait = budget.try_take(1, now).unwrap_err();
    assert!((100..101).contains(&wait.as_millis()), "{wait:?}");
    assert!(!takes(&budget, 1, now + wait - Duration::from_micros(10)));
    assert!(takes(&budget, 1, now + wait));
}

#[test]
fn what_is_owed_is_waited_for_by_the_next_one() {
    let (budget, now) = (Budget::default(), Instant::now());
    budget.owe(1_000_000);
    budget.set(Some(1_000_000));
    assert!(takes(&budget, 1, now), "without a limit nothing is owed");
    budget.owe(1_000_000);
    budget.owe(1_000_000);
    let wait = budget.try_take(1, now).unwrap_err();
    assert!((1_900..2_000).contains(&wait.as_millis()), "{wait:?}");
    assert_eq!(budget.taken(), 3_000_000);
}

#[test]
fn without_a_limit_nothing_waits_and_a_change_is_felt_at_once() {
    let (budget, now) = (Budget::default(), Instant::now());
    assert_eq!(taken_in(&budget, now, 100, 1 << 20), 100 << 20);
    budget.set(Some(1_000));
    assert!(taken_in(&budget, now, 1_000, 100) <= 1_300);
    budget.set(Some(100_000_000));
    let later = now + Duration::from_secs(1);
    assert!(taken_in(&budget, later, 1_000, 100_000) >= 90_000_000);
    budget.set(None);
    assert_eq!(taken_in(&budget, now, 10, 1 << 20), 10 << 20);
}

#[test]
fn a_limit_that_changes_often_holds() {
    let (budget, now) = (Budget::default(), Instant::now());
    let mut taken = 0;
    for step in 0..100 {
        budget.set(Some(if step % 2 == 0 { 1_000_000 } else { 900_000 }));
        taken += taken_in(&budget, now + Duration::from_millis(10 * step), 10, 262_144);
    }
    assert!(taken <= 1_300_000, "{taken}");
}

#[test]
fn a_piece_larger_than_the_budget_of_a_second_still_goes() {
    let (budget, now) = (Budget::default(), Instant::now());
    budget.set(Some(10_000));
    assert!(takes(&budget, 65_536, now));
    assert!(!takes(&budget, 65_536, now + Duration::from_secs(1)));
    assert!(takes(&budget, 65_536, now + Duration::from_secs(8)));
}

#[tokio::test]
async fn a_part_of_a_budget_obeys_both_limits() {
    let whole = Arc::new(Budget::default());
    let part = Budget::within(Arc::clone(&whole));
    // Budgets use the real clock: only what does not wait can be tested here.
    part.take(1 << 20, || panic!("no limit")).await;
    whole.set(Some(1_000));
    part.take(2_000, || ()).await;
    assert!(whole.try_take(1, Instant::now()).is_err(), "it counted there");
    let other = Budget::within(Arc::clone(&whole));
    other.set(Some(1_000_000));
    assert!(other.try_take(1, Instant::now()).is_ok(), "its own limit is another one");
}
