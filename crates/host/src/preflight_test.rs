use super::*;

#[test]
fn a_crash_between_two_looks_breaks_the_streak() {
    let second = Duration::from_secs(1);
    let start = Instant::now();
    let mut streak = Streak::default();
    assert!(!streak.is_unbroken_for(Duration::ZERO, start), "nothing was seen yet");
    streak.healthy(start, 0);
    assert!(streak.is_unbroken_for(Duration::ZERO, start));
    streak.healthy(start + second, 0);
    assert!(streak.is_unbroken_for(second, start + second));
    assert_eq!(streak.left(3 * second, start + second), 2 * second);
    streak.healthy(start + 2 * second, 1);
    assert!(!streak.is_unbroken_for(second, start + 2 * second));
    assert!(streak.is_unbroken_for(second, start + 3 * second));
}

#[test]
fn a_loop_and_a_failed_unit_are_given_up() {
    let waiting =
        |exits| ServiceStatus { exits, state: ServiceState::Waiting, ..Default::default() };
    let stopped = |exits| ServiceStatus { exits, ..Default::default() };
    assert!(!will_stay_down(&waiting(2)) && will_stay_down(&waiting(3)));
    assert!(!will_stay_down(&stopped(0)) && will_stay_down(&stopped(1)));
}
