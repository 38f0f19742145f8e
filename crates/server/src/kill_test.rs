use super::{KILL_EPOCH_STEP_MAX, KILL_SCOPES_MAX, Position, Refused, stopping, stores};

fn on(epoch: u64) -> Position {
    Position { epoch, on: true }
}

fn off(epoch: u64) -> Position {
    Position { epoch, on: false }
}

#[test]
fn merging_is_the_same_in_every_order() {
    for (current, incoming, expected) in [
        (None, off(1), true),
        (None, on(1), true),
        (Some(on(1)), on(1), false),
        (Some(on(1)), off(1), false),
        (Some(off(1)), on(1), true),
        (Some(on(1)), off(2), true),
        (Some(off(2)), on(1), false),
    ] {
        assert_eq!(incoming.supersedes(current), expected, "{current:?} {incoming:?}");
    }
    let all: Vec<Position> = (1..4).flat_map(|epoch| [off(epoch), on(epoch)]).collect();
    for start in 0..all.len() {
        let mut current = None;
        for step in 0..all.len() {
            let incoming = all[(start + step * 5) % all.len()];
            if incoming.supersedes(current) {
                current = Some(incoming);
            }
        }
        assert_eq!(current, Some(on(3)));
    }
}

#[test]
fn a_damaged_register_is_on_until_a_higher_epoch() {
    let damaged = Position::damaged(4);
    assert!(damaged.on);
    assert!(!off(4).supersedes(Some(damaged)), "the off of the same epoch does not heal it");
    assert!(off(5).supersedes(Some(damaged)));
}

#[test]
fn an_operators_on_wins_over_every_earlier_off_and_off_only_over_what_was_seen() {
    assert_eq!(Position::next(None, false, 1_000), off(1));
    assert_eq!(Position::next(Some(on(7)), false, 1_000), off(8));
    assert_eq!(Position::next(Some(on(7)), true, 1_000), on(1_000));
    assert_eq!(Position::next(Some(off(5_000)), true, 1_000), on(5_001), "a clock that is behind");
    assert_eq!(Position::next(Some(on(u64::MAX)), false, 0), off(u64::MAX));
}

#[test]
fn the_last_epoch_cannot_be_used_up() {
    let now_s = 1_800_000_000;
    let known = Some(on(7));
    for epoch in [u64::MAX, now_s + KILL_EPOCH_STEP_MAX + 1] {
        let highest = now_s + KILL_EPOCH_STEP_MAX;
        assert_eq!(stores(on(epoch), known, 1, now_s), Err(Refused::Epoch { epoch, highest }));
    }
    assert_eq!(stores(on(now_s), known, 1, now_s), Ok(true), "the time of day");
    let ahead = now_s + KILL_EPOCH_STEP_MAX;
    assert_eq!(stores(on(ahead), known, 1, now_s), Ok(true));
    assert_eq!(stores(off(ahead + 1), Some(on(ahead)), 1, now_s), Ok(true), "always one more");
    // A server whose clock is at zero goes by the last epoch.
    assert_eq!(stores(off(ahead + 1), Some(on(ahead)), 1, 0), Ok(true));
}

#[test]
fn what_changes_nothing_is_not_stored_nor_refused() {
    assert_eq!(stores(off(3), Some(off(3)), KILL_SCOPES_MAX, 0), Ok(false));
    assert_eq!(stores(on(2), Some(off(3)), KILL_SCOPES_MAX, 0), Ok(false));
}

#[test]
fn only_a_new_scope_counts_against_the_limit() {
    assert_eq!(stores(on(1), None, KILL_SCOPES_MAX - 1, 0), Ok(true));
    assert_eq!(stores(on(1), None, KILL_SCOPES_MAX, 0), Err(Refused::TooMany));
    assert_eq!(stores(on(2), Some(on(1)), KILL_SCOPES_MAX, 0), Ok(true));
}

#[test]
fn a_group_stops_for_the_fleets_register_or_its_own() {
    let stops = |fleet, own| stopping(fleet, own, |register: &Position| *register);
    assert_eq!(stops(None, None), None);
    assert_eq!(stops(Some(off(9)), Some(off(9))), None);
    assert_eq!(stops(Some(on(1)), None), Some(on(1)));
    assert_eq!(stops(None, Some(on(2))), Some(on(2)));
    assert_eq!(stops(Some(off(9)), Some(on(2))), Some(on(2)), "stopped on its own");
    assert_eq!(stops(Some(on(1)), Some(off(9))), Some(on(1)), "its off does not lift the fleet's");
    assert_eq!(stops(Some(on(1)), Some(on(2))), Some(on(1)), "the fleet's is named");
}
