use super::*;

const TENTH: Schedule = Schedule::new(Duration::from_millis(100), Duration::from_secs(5));

#[test]
fn pauses_double_up_to_the_longest() {
    for (failures, full_ms) in
        [(0, 100), (1, 100), (2, 200), (5, 1_600), (7, 5_000), (1_000, 5_000)]
    {
        let full = Duration::from_millis(full_ms);
        for random in 0..100 {
            let pause = TENTH.pause(failures, random);
            // The library's arithmetic drops halves of milliseconds.
            let slack = Duration::from_millis(1);
            assert!(pause + slack >= full / 2 && pause <= full + slack, "{failures}: {pause:?}");
        }
    }
}

#[test]
fn the_random_number_decides() {
    assert_eq!(TENTH.pause(3, 7), TENTH.pause(3, 7));
    assert_ne!(TENTH.pause(3, 7), TENTH.pause(3, 8));
}

#[test]
fn success_starts_from_the_first_pause() {
    let mut pauses = TENTH.pauses();
    let last = (0..10).map(|_| pauses.next_pause()).last().unwrap();
    assert!(last >= Duration::from_secs(2), "{last:?}");
    pauses.reset();
    assert!(pauses.next_pause() <= Duration::from_millis(101));
}

#[test]
fn a_first_pause_longer_than_the_longest_is_cut() {
    let schedule = Schedule::new(Duration::from_secs(9), Duration::from_secs(1));
    assert!(schedule.pause(1, 3) <= Duration::from_millis(1_001));
}
