use super::*;

#[test]
fn only_a_service_that_stayed_up_is_restarted_quickly_again() {
    let mut restarts = Restarts(PROGRAM.pauses());
    let crashes: Vec<Duration> =
        (0..12).map(|_| restarts.pause_after(Duration::from_secs(1))).collect();
    assert!(crashes[0] <= Duration::from_millis(101), "{crashes:?}");
    assert!(crashes[11] >= Duration::from_secs(10), "{crashes:?}");
    assert!(restarts.pause_after(STABLE_AFTER) <= Duration::from_millis(101));
}
