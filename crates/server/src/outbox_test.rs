use cohort_core::ids::{BootEpoch, Digest, Generation, Incarnation, MemberId};
use cohort_core::orders::{Fence, MemberAddress};
use cohort_core::report::{Blame, Outcome, REPORT_TEXT_BYTES_MAX, Step};

use super::{BATCH_MAX, Outbox, QUEUE_MAX};

fn member(server: &str, member: u64) -> MemberAddress {
    MemberAddress {
        server: server.parse().unwrap(),
        address: format!("{server}:7417"),
        member: MemberId(member),
    }
}

fn outbox() -> Outbox {
    Outbox::new("s1".parse().unwrap(), BootEpoch(3))
}

fn fence(generation: u64) -> Fence {
    Fence { incarnation: Incarnation(1), generation: Generation(generation) }
}

fn report(outbox: &mut Outbox, generation: u64, outcome: Outcome) {
    outbox.report(&"web".parse().unwrap(), fence(generation), 1, outcome);
}

#[test]
fn reports_are_numbered_in_order_and_sent_until_they_are_acknowledged() {
    let mut outbox = outbox();
    let members = [member("s2", 2), member("s1", 1)];
    report(&mut outbox, 1, Outcome::Applied);
    report(&mut outbox, 1, Outcome::Checked);

    let first = outbox.next(0, &members).unwrap();
    assert_eq!(first.to, members[1], "its own member first");
    let sequences: Vec<u64> = first.reports.iter().map(|report| report.sequence).collect();
    assert_eq!(sequences, [1, 2]);
    assert_eq!(outbox.next(0, &members), None, "one request is open");

    outbox.not_answered(0);
    assert_eq!(outbox.next(49, &members), None, "not before the pause is over");
    let again = outbox.next(50, &members).unwrap();
    assert_eq!((again.to, again.reports), (members[0].clone(), first.reports), "the next member");

    outbox.answered(&[true, true]);
    assert!(outbox.is_empty());
    assert_eq!(outbox.due_ms(), None);
}

#[test]
fn only_accepted_checks_confirm() {
    let mut outbox = outbox();
    let members = [member("s1", 1)];
    report(&mut outbox, 1, Outcome::Checked);
    report(&mut outbox, 2, Outcome::Checked);
    let _ = outbox.next(0, &members).unwrap();
    outbox.answered(&[true, false]);
    assert_eq!(outbox.confirmed().values().copied().collect::<Vec<_>>(), [fence(1)]);
}

#[test]
fn what_a_slow_member_did_is_not_sent_again() {
    let mut outbox = outbox();
    let members = [member("s1", 1)];
    for generation in 1..=3 {
        report(&mut outbox, generation, Outcome::Checked);
    }
    let _ = outbox.next(0, &members).unwrap();
    outbox.answered(&[true, true]);
    let left = outbox.next(0, &members).unwrap().reports;
    assert_eq!(left.iter().map(|report| report.sequence).collect::<Vec<_>>(), [3]);
    assert_eq!(outbox.confirmed().values().copied().collect::<Vec<_>>(), [fence(2)]);
}

#[test]
fn a_batch_is_bounded_and_what_came_meanwhile_stays() {
    let mut outbox = outbox();
    let members = [member("s1", 1)];
    for generation in 0..=BATCH_MAX as u64 {
        report(&mut outbox, generation, Outcome::Applied);
    }
    assert_eq!(outbox.next(0, &members).unwrap().reports.len(), BATCH_MAX);
    report(&mut outbox, 99, Outcome::Applied);
    outbox.answered(&[true; BATCH_MAX]);
    assert_eq!(outbox.next(0, &members).unwrap().reports.len(), 2);
}

#[test]
fn half_of_the_queue_is_kept_for_outcomes() {
    let mut outbox = outbox();
    for _ in 0..QUEUE_MAX / 2 {
        report(&mut outbox, 1, Outcome::Applied);
    }
    assert!(outbox.has_room() && !outbox.has_room_for_health());
    for _ in 0..QUEUE_MAX / 2 {
        report(&mut outbox, 1, Outcome::Applied);
    }
    assert!(!outbox.has_room());
}

#[test]
fn the_outbox_is_bounded_whoever_does_not_ask_for_room() {
    let mut outbox = outbox();
    for _ in 0..4 * QUEUE_MAX {
        report(&mut outbox, 1, Outcome::Applied);
    }
    let mut held = 0;
    while let Some(sending) = outbox.next(0, &[member("s1", 1)]) {
        held += sending.reports.len();
        outbox.answered(&vec![true; sending.reports.len()]);
    }
    assert_eq!(held, 3 * QUEUE_MAX);
}

#[test]
fn without_members_it_waits_instead_of_spinning() {
    let mut outbox = outbox();
    report(&mut outbox, 1, Outcome::Holds { artifact: Digest::new("a".repeat(64)).unwrap() });
    assert_eq!(outbox.next(1_000, &[]), None);
    assert!(outbox.due_ms().unwrap() > 1_000);
}

#[test]
fn of_a_reason_the_start_is_kept_and_of_an_output_the_end() {
    let mut outbox = outbox();
    let long = format!("ä{}ö", "x".repeat(2 * REPORT_TEXT_BYTES_MAX));
    let (reason, output) = (long.clone(), long);
    let (blame, step) = (Blame::Release, Step::Check);
    report(&mut outbox, 1, Outcome::Failed { blame, step, reason, output });
    let sent = outbox.next(0, &[member("s1", 1)]).unwrap();
    let Outcome::Failed { reason, output, .. } = &sent.reports[0].outcome else { panic!() };
    assert!(reason.starts_with('ä') && output.ends_with('ö'));
    assert!(reason.len() <= REPORT_TEXT_BYTES_MAX && output.len() <= REPORT_TEXT_BYTES_MAX);
}
