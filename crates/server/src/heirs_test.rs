use cohort_core::ability::Ability;
use cohort_core::ids::ServerId;

use super::{Heirs, KNOWN_MS, LACKING_MS, TRY_EVERY_MS};

const NOTHING: Ability = Ability { registry: false, repository: false, disk: true };
const HUB: Ability = Ability { registry: true, ..NOTHING };
const MIRROR: Ability = Ability { repository: true, ..NOTHING };
const ALL: Ability = Ability::FULL;

fn server(n: u64) -> ServerId {
    ServerId::new(format!("s{n}")).unwrap()
}

/// The heir of a leader that has reached `own` for long, by what s2, s3 and so on reach.
fn heir(own: Ability, others: &[Ability]) -> Option<ServerId> {
    let mut heirs = Heirs::default();
    heirs.reaches(1_000, own);
    let now_ms = 1_000 + LACKING_MS;
    for (n, ability) in (2..).zip(others) {
        heirs.heard(now_ms, server(n), *ability);
    }
    heirs.heir(now_ms, |_| true)
}

#[test]
fn only_a_voter_that_reaches_more_becomes_the_leader() {
    assert_eq!(heir(NOTHING, &[]), None);
    assert_eq!(heir(NOTHING, &[NOTHING, HUB]), Some(server(3)));
    assert_eq!(heir(NOTHING, &[HUB, ALL]), Some(server(3)), "the one that reaches most");
    assert_eq!(heir(ALL, &[ALL]), None);
    // Neither would be better off: leadership would move back and forth.
    assert_eq!(heir(HUB, &[MIRROR, HUB]), None);
}

#[test]
fn a_moment_without_the_hub_moves_nothing() {
    let mut heirs = Heirs::default();
    heirs.reaches(1_000, MIRROR);
    let late_ms = LACKING_MS - 1;
    heirs.heard(late_ms, server(2), ALL);
    assert!(!heirs.asks(1_000) && heirs.asks(late_ms), "the voters try before it is due");
    assert_eq!(heirs.heir(1_000 + late_ms, |_| true), None);
    heirs.reaches(1_000 + late_ms, ALL);
    heirs.reaches(2_000 + late_ms, MIRROR);
    assert_eq!(heirs.heir(2_000 + LACKING_MS, |_| true), None, "it starts over");
}

#[test]
fn an_old_word_does_not_count_and_a_failed_transfer_is_retried() {
    let mut heirs = Heirs::default();
    heirs.reaches(0, NOTHING);
    heirs.heard(0, server(2), ALL);
    assert_eq!(heirs.heir(KNOWN_MS, |_| true), None);
    heirs.heard(KNOWN_MS, server(2), ALL);
    assert_eq!(heirs.heir(KNOWN_MS, |voter| *voter != server(2)), None, "it carries no voter");
    heirs.heard(KNOWN_MS, server(2), ALL);
    assert_eq!(heirs.heir(KNOWN_MS, |_| true), Some(server(2)));
    assert_eq!(heirs.heir(KNOWN_MS + 1, |_| true), None);
    assert_eq!(heirs.heir(KNOWN_MS + TRY_EVERY_MS, |_| true), Some(server(2)), "it is retried");
    assert_eq!(heirs.heir(2 * KNOWN_MS, |_| true), None, "its word is old by now");
}

#[test]
fn a_leader_with_a_full_disk_does_not_wait() {
    let mut heirs = Heirs::default();
    heirs.heard(LACKING_MS, server(2), MIRROR);
    heirs.reaches(LACKING_MS, Ability { disk: false, ..MIRROR });
    assert!(heirs.asks(LACKING_MS));
    assert_eq!(heirs.heir(LACKING_MS, |_| true), Some(server(2)));
}
