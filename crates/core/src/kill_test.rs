use proptest::prelude::*;

use super::{KILL_EPOCH_STEP_MAX, KILL_SCOPES_MAX, KillScope, Position, Refused, Registers};
use crate::ids::GroupId;

fn on(epoch: u64) -> Position {
    Position { epoch, on: true }
}

fn off(epoch: u64) -> Position {
    Position { epoch, on: false }
}

fn group(number: usize) -> KillScope {
    KillScope::Group(id(number))
}

fn id(number: usize) -> GroupId {
    GroupId::new(format!("intel.zone-{number}")).expect("a group")
}

/// Registers of every scope, known by their position alone.
fn fleet(position: Option<Position>) -> Registers<Position> {
    let mut known = Registers::new(None);
    if let Some(position) = position {
        assert!(known.merge(KillScope::Fleet, position, position));
    }
    known
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
        let mut known = fleet(current);
        let changed = known.merge(KillScope::Fleet, incoming, incoming);
        assert_eq!(changed, expected, "{current:?} {incoming:?}");
        assert_eq!(
            known.position(&KillScope::Fleet),
            if expected { Some(incoming) } else { current }
        );
    }
    let all: Vec<Position> = (1..4).flat_map(|epoch| [off(epoch), on(epoch)]).collect();
    for start in 0..all.len() {
        let mut known = Registers::new(None);
        for step in 0..all.len() {
            let incoming = all[(start + step * 5) % all.len()];
            known.merge(KillScope::Fleet, incoming, ());
        }
        assert_eq!(known.position(&KillScope::Fleet), Some(on(3)));
    }
}

#[test]
fn a_damaged_register_is_on_until_a_higher_epoch() {
    let mut known = fleet(Some(Position::damaged(4)));
    assert!(known.stopping().is_some());
    let mut merge = |position| known.merge(KillScope::Fleet, position, position);
    assert!(!merge(off(4)), "the off of the same epoch does not heal it");
    assert!(merge(off(5)));
}

#[test]
fn an_operators_change_wins_over_every_earlier_one_seen_or_not() {
    for turns_on in [true, false] {
        let position = if turns_on { on } else { off };
        let next = |seen, now_s| Position::next(seen, &[], turns_on, now_s);
        assert_eq!(next(None, 1_000), position(1_000));
        assert_eq!(next(Some(on(7)), 1_000), position(1_000));
        assert_eq!(next(Some(off(5_000)), 1_000), position(5_001), "a clock that is behind");
        assert_eq!(next(Some(on(u64::MAX)), 0), position(u64::MAX));
    }
}

#[test]
fn the_next_change_heals_damage_and_false_damage_cannot_use_up_the_epochs() {
    let now_s = 1_800_000_000;
    let next = |damaged: &[u64]| Position::next(Some(on(7)), damaged, false, now_s);
    assert_eq!(next(&[5]), off(now_s));
    assert_eq!(next(&[now_s + 9, u64::MAX]), off(now_s + 10));
    let highest = next(&[now_s + KILL_EPOCH_STEP_MAX / 2 - 1]);
    let days = 5 * 86_400;
    assert_eq!(accepted(highest, Some(on(7)), now_s - days), Ok(true), "by a clock that is behind");
    assert_eq!(next(&[now_s + KILL_EPOCH_STEP_MAX / 2]), off(now_s));
}

fn accepted(incoming: Position, current: Option<Position>, now_s: u64) -> Result<bool, Refused> {
    fleet(current).accept(&KillScope::Fleet, incoming, now_s)
}

#[test]
fn the_last_epoch_cannot_be_used_up() {
    let now_s = 1_800_000_000;
    let known = Some(on(7));
    for epoch in [u64::MAX, now_s + KILL_EPOCH_STEP_MAX + 1] {
        let highest = now_s + KILL_EPOCH_STEP_MAX;
        assert_eq!(accepted(on(epoch), known, now_s), Err(Refused::Epoch { epoch, highest }));
    }
    assert_eq!(accepted(on(now_s), known, now_s), Ok(true), "the time of day");
    let ahead = now_s + KILL_EPOCH_STEP_MAX;
    assert_eq!(accepted(on(ahead), known, now_s), Ok(true));
    assert_eq!(accepted(off(ahead + 1), Some(on(ahead)), now_s), Ok(true), "always one more");
    // A server whose clock is at zero goes by the last epoch.
    assert_eq!(accepted(off(ahead + 1), Some(on(ahead)), 0), Ok(true));
}

#[test]
fn what_changes_nothing_is_not_stored_nor_refused() {
    assert_eq!(accepted(off(3), Some(off(3)), 0), Ok(false));
    assert_eq!(accepted(on(2), Some(off(3)), 0), Ok(false));
}

#[test]
fn only_a_new_scope_counts_against_the_limit() {
    let mut known = Registers::new(None);
    for number in 1..KILL_SCOPES_MAX {
        known.merge(group(number), on(1), ());
    }
    assert_eq!(known.accept(&group(0), on(1), 0), Ok(true));
    known.merge(group(0), on(1), ());
    assert_eq!(known.accept(&KillScope::Fleet, on(1), 0), Err(Refused::TooMany));
    assert_eq!(known.accept(&group(0), on(2), 0), Ok(true));
    assert_eq!(known.accept(&group(0), on(1), 0), Ok(false), "nor what changes nothing");
}

#[test]
fn a_server_stops_for_the_fleets_register_or_its_groups() {
    let stops = |fleet: Option<Position>, own: Option<Position>| {
        let mut known = Registers::new(Some(id(1)));
        for (scope, position) in [(KillScope::Fleet, fleet), (group(1), own)] {
            if let Some(position) = position {
                assert!(known.merge(scope, position, position));
            }
        }
        known.stopping().copied()
    };
    assert_eq!(stops(None, None), None);
    assert_eq!(stops(Some(off(9)), Some(off(9))), None);
    assert_eq!(stops(Some(on(1)), None), Some(on(1)));
    assert_eq!(stops(None, Some(on(2))), Some(on(2)));
    assert_eq!(stops(Some(off(9)), Some(on(2))), Some(on(2)), "stopped on its own");
    assert_eq!(stops(Some(on(1)), Some(off(9))), Some(on(1)), "its off does not lift the fleet's");
    assert_eq!(stops(Some(on(1)), Some(on(2))), Some(on(1)), "the fleet's is named");
}

/// What a server holds is what it forwards: two registers, whatever else exists.
#[test]
fn a_server_holds_the_fleets_register_and_its_groups_and_no_other() {
    let mut known = Registers::new(Some(id(1)));
    let other = Refused::OtherGroup { group: id(2), own: id(1) };
    assert_eq!(known.accept(&group(2), on(9), 0), Err(other));
    assert!(!known.merge(group(2), on(9), on(9)));
    for scope in [KillScope::Fleet, group(1)] {
        assert_eq!(known.accept(&scope, on(1), 0), Ok(true));
        assert!(known.merge(scope, on(1), on(1)));
    }
    let held: Vec<String> = known.iter().map(|(scope, _)| scope.to_string()).collect();
    assert_eq!(held, ["fleet", "intel.zone-1"]);
}

/// What an operator did: switch a scope, at one place.
#[derive(Debug, Clone)]
struct Change {
    scope: KillScope,
    position: Position,
    place: usize,
}

const GROUPS: usize = 3;
/// The hub, then two servers of each group.
const PLACES: usize = 1 + 2 * GROUPS;

fn change() -> impl Strategy<Value = Change> {
    let scope = prop_oneof![Just(KillScope::Fleet), (0..GROUPS).prop_map(group)];
    let position = (1..6_u64, any::<bool>()).prop_map(|(epoch, on)| Position { epoch, on });
    (scope, position, 0..PLACES).prop_map(|(scope, position, place)| Change {
        scope,
        position,
        place,
    })
}

fn holder(place: usize) -> Registers<Position> {
    Registers::new(place.checked_sub(1).map(|server| id(server / 2)))
}

/// One place tells another all that it holds, as with every message.
fn tell(places: &mut [Registers<Position>], from: usize, to: usize) {
    let held: Vec<(KillScope, Position)> =
        places[from].iter().map(|(scope, position)| (scope.clone(), *position)).collect();
    for (scope, position) in held {
        if places[to].accept(&scope, position, 0).is_ok_and(|changes| changes) {
            places[to].merge(scope, position, position);
        }
    }
}

proptest! {
    /// Any number of scopes and changes at any places, any links in any order: every place that is
    /// linked with the others ends with the last change of each scope that it holds, and at no time
    /// did one go back to an earlier.
    #[test]
    fn every_register_arrives_wherever_it_counts(
        changes in proptest::collection::vec(change(), 1..20),
        links in proptest::collection::vec((0..PLACES, 0..PLACES), 0..60),
        cut in proptest::collection::btree_set(1..PLACES, 0..PLACES - 1),
    ) {
        let mut places: Vec<Registers<Position>> = (0..PLACES).map(holder).collect();
        let mut given: Vec<Change> = Vec::new();
        let mut links = links.into_iter();
        for change in changes {
            let at = &mut places[change.place];
            if at.accept(&change.scope, change.position, 0).is_ok_and(|changes| changes) {
                at.merge(change.scope.clone(), change.position, change.position);
                given.push(change);
            }
            for (from, to) in links.by_ref().take(3) {
                if cut.contains(&from) || cut.contains(&to) || from == to {
                    continue;
                }
                let before = places[to].clone();
                tell(&mut places, from, to);
                for (scope, position) in before.iter() {
                    prop_assert!(places[to].position(scope) >= Some(*position));
                }
            }
        }
        // The links that are left, once each way, in the worst order for most.
        for _ in 0..PLACES {
            for (from, to) in (0..PLACES).flat_map(|from| (0..PLACES).map(move |to| (from, to))) {
                if from != to && !cut.contains(&from) && !cut.contains(&to) {
                    tell(&mut places, from, to);
                }
            }
        }
        for (place, holds) in places.iter().enumerate().filter(|(place, _)| !cut.contains(place)) {
            for scope in [KillScope::Fleet, group(0), group(1), group(2)] {
                let reaches = given.iter().filter(|change| {
                    let counts = holder(place).accept(&scope, change.position, 0).is_ok();
                    change.scope == scope && counts && !cut.contains(&change.place)
                });
                let last = reaches.map(|change| change.position).max();
                prop_assert_eq!(holds.position(&scope), last, "{} {}", place, scope);
            }
        }
    }
}
