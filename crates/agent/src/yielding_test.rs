use super::{Pressure, Seen, Yielding};

const MB: u64 = 1_000_000;
const FLOOR: u64 = 4 * MB;

fn quiet() -> Yielding {
    Yielding::new(FLOOR, Pressure::default())
}

fn seen(io: u32, rate: u64) -> Seen {
    Seen { pressure: Pressure { io, cpu: 0 }, rate }
}

/// Plays looks against a machine on which artifacts move as fast as they may, at most `most`, and
/// on which the disk is short as soon as they move faster than `bears`. Returns the rates.
fn play(yielding: &mut Yielding, looks: usize, most: u64, bears: u64) -> Vec<u64> {
    let mut rate = most;
    let mut rates = Vec::new();
    for _ in 0..looks {
        let io = if rate > bears { 800 } else { 50 };
        rate = yielding.look(seen(io, rate)).map_or(most, |limit| limit.min(most));
        rates.push(rate);
    }
    rates
}

#[test]
fn nothing_is_limited_while_nobody_waits() {
    let mut yielding = quiet();
    for rate in [0, 10 * MB, 1_000 * MB] {
        for io in [0, 100, 300, 300] {
            assert_eq!(yielding.look(seen(io, rate)), None);
        }
    }
}

#[test]
fn one_look_is_not_enough() {
    let mut yielding = quiet();
    for _ in 0..100 {
        assert_eq!(yielding.look(seen(1_000, 100 * MB)), None);
        assert_eq!(yielding.look(seen(0, 100 * MB)), None);
    }
    assert_eq!(yielding.look(seen(1_000, 100 * MB)), None);
    assert_eq!(yielding.look(seen(1_000, 100 * MB)), Some(75 * MB));
}

/// The second of two looks alike.
fn twice(yielding: &mut Yielding, seen: Seen) -> Option<u64> {
    yielding.look(seen);
    yielding.look(seen)
}

#[test]
fn a_machine_that_is_short_is_made_way_for_within_two_seconds() {
    let mut yielding = quiet();
    let rates = play(&mut yielding, 7, 100 * MB, 20 * MB);
    assert_eq!(rates[..2], [100 * MB, 75 * MB]);
    assert!(rates[1..].windows(2).all(|pair| pair[1] < pair[0]), "{rates:?}");
    assert!(rates[6] <= 20 * MB, "{rates:?}");
}

#[test]
fn it_settles_around_what_the_machine_bears() {
    let mut yielding = quiet();
    let rates = play(&mut yielding, 400, 100 * MB, 40 * MB);
    let settled = &rates[20..];
    let mean = settled.iter().sum::<u64>() / settled.len() as u64;
    assert!((30 * MB..=42 * MB).contains(&mean), "{mean}");
    assert!(settled.iter().all(|rate| (25 * MB..=47 * MB).contains(rate)), "{settled:?}");
}

#[test]
fn never_below_the_floor() {
    let mut yielding = quiet();
    let rates = play(&mut yielding, 100, 100 * MB, 0);
    assert!(rates.iter().all(|rate| *rate >= FLOOR));
    assert_eq!(rates.last(), Some(&FLOOR));
    // What moves slower than the floor by itself is not slowed at all.
    let mut yielding = quiet();
    assert_eq!(twice(&mut yielding, seen(900, MB)), Some(FLOOR));
    yielding.set_floor(8 * MB);
    assert_eq!(yielding.look(seen(900, MB)), Some(8 * MB));
}

#[test]
fn it_is_back_to_full_speed_within_seconds() {
    let mut yielding = quiet();
    play(&mut yielding, 40, 100 * MB, 0);
    let rates = play(&mut yielding, 32, 100 * MB, u64::MAX);
    let back = rates.iter().position(|rate| *rate == 100 * MB).unwrap();
    assert!(back <= 17, "{back} looks, {rates:?}");
    assert_eq!(yielding.look(seen(0, 100 * MB)), None, "the limit is gone");
}

#[test]
fn what_is_usual_here_is_no_reason_to_be_slow() {
    let mut yielding = quiet();
    for _ in 0..200 {
        yielding.look(seen(500, 0));
    }
    let usual = twice(&mut yielding, seen(790, 100 * MB));
    assert_eq!(usual, None, "the database waits as it always does");
    assert_eq!(twice(&mut yielding, seen(820, 100 * MB)), Some(75 * MB));
    // While artifacts move, nothing is learnt: they would become usual themselves.
    for _ in 0..400 {
        yielding.look(seen(820, 100 * MB));
    }
    assert_eq!(yielding.look(seen(820, 100 * MB)), Some(FLOOR));
    // It goes away as it came.
    let mut yielding = Yielding::new(FLOOR, Pressure { io: 900, cpu: 0 });
    assert_eq!(twice(&mut yielding, seen(1_000, 100 * MB)), None);
    for _ in 0..200 {
        yielding.look(seen(0, 0));
    }
    assert_eq!(twice(&mut yielding, seen(400, 100 * MB)), Some(75 * MB));
}

#[test]
fn a_limit_that_binds_nobody_goes() {
    let mut yielding = quiet();
    assert!(twice(&mut yielding, seen(900, 100 * MB)).is_some());
    // The transfer ends; the next one begins unhindered.
    let looks = (0..40).take_while(|_| yielding.look(seen(900, 0)).is_some()).count();
    assert!(looks <= 8, "{looks}");
    assert_eq!(yielding.look(seen(0, 100 * MB)), None);
}

#[test]
fn processors_count_when_nearly_all_wait() {
    let mut yielding = quiet();
    let cpu = |cpu| Seen { pressure: Pressure { io: 0, cpu }, rate: 100 * MB };
    assert_eq!(twice(&mut yielding, cpu(600)), None);
    assert_eq!(twice(&mut yielding, cpu(601)), Some(75 * MB));
}
