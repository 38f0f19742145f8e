//! Budgets.

use std::time::{Duration, Instant};

use crate::Budget;

fn taken_in(budget: &Budget, from: Instant, ms: u64, piece: usize) -> usize {
    let steps = (0..ms).map(|step| from + Duration::from_millis(step));
    steps.filter(|now| budget.try_take(piece, *now)).count() * piece
}

#[test]
fn a_limit_holds_over_a_second() {
    let budget = Budget::default();
    budget.set(Some(1_000_000));
    let taken = taken_in(&budget, Instant::now(), 1_000, 16_384);
    assert!((900_000..1_200_000).contains(&taken), "{taken}");
}

#[test]
fn without_a_limit_nothing_waits_and_a_change_is_felt_at_once() {
    let (budget, now) = (Budget::default(), Instant::now());
    assert_eq!(taken_in(&budget, now, 100, 1 << 20), 100 << 20);
    budget.set(Some(1_000));
    assert!(taken_in(&budget, now, 1_000, 100) <= 1_300);
    budget.set(Some(100_000_000));
    assert!(taken_in(&budget, now, 1_000, 100_000) >= 90_000_000);
    budget.set(None);
    assert_eq!(taken_in(&budget, now, 10, 1 << 20), 10 << 20);
}

#[test]
fn a_piece_larger_than_the_budget_of_a_second_still_goes() {
    let (budget, now) = (Budget::default(), Instant::now());
    budget.set(Some(10_000));
    assert!(budget.try_take(65_536, now));
    assert!(!budget.try_take(65_536, now + Duration::from_secs(1)));
    assert!(budget.try_take(65_536, now + Duration::from_secs(8)));
}
