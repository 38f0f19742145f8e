use super::{AppRecord, BootTime, Elapsed, Failure, NoTraffic, Reached};
use crate::ids::{Generation, Incarnation};
use crate::orders::{ActivationOrder, Fence, Purpose};
use crate::release::{Release, Rollback};
use crate::report::{Blame, Step};
use crate::steps::Progress;

fn at(ms: u64) -> BootTime<'static> {
    BootTime { boot: "this", ms }
}

fn release(version: &str) -> Release {
    Release {
        version: version.parse().unwrap(),
        platform: "linux/amd64".parse().unwrap(),
        artifact: version[..1].repeat(64).parse().unwrap(),
        manifest: "0".repeat(64).parse().unwrap(),
        length: 1,
        unpacked_bytes: 64 << 30,
        entries: 250_000,
        rollback: Rollback::Revert,
    }
}

fn order(generation: u64, release: &Release) -> ActivationOrder {
    ActivationOrder {
        fence: Fence { incarnation: Incarnation(1), generation: Generation(generation) },
        release: Some(release.clone()),
        undo_to: None,
        purpose: Purpose::Wave,
        avoid: Vec::new(),
        drain_ms: 0,
        min_healthy_ms: 0,
        healthy_deadline_ms: 5_000,
        confirm_within_ms: 60_000,
        warm_up_ms: 0,
        stop_despite_hooks: false,
        checks: Vec::new(),
        hold: None,
    }
}

fn accept(record: &mut AppRecord, order: ActivationOrder) {
    record.accept(order, Step::Prepare, |_| true, at(0));
}

/// A record of a server on which this release ran well.
fn running(release: &Release) -> AppRecord {
    let mut record = AppRecord::default();
    accept(&mut record, order(1, release));
    record.done(Step::Switch, 1);
    record.complete();
    record
}

fn failure(blame: Blame, reason: &str) -> Failure {
    Failure { blame, reason: reason.to_owned(), output: String::new() }
}

fn progress(record: &AppRecord) -> &Progress {
    &record.local.activation.as_ref().unwrap().progress
}

fn previous(record: &AppRecord) -> Option<&Release> {
    record.local.activation.as_ref().unwrap().previous.as_ref()
}

#[test]
fn a_reboot_keeps_what_had_elapsed() {
    let mut clock = Elapsed::start(BootTime { boot: "a", ms: 5_000 });
    clock = clock.carried(BootTime { boot: "a", ms: 5_100 });
    assert_eq!(clock.ms(BootTime { boot: "a", ms: 6_000 }), 1_000);
    assert_eq!(clock.ms(BootTime { boot: "b", ms: 700 }), 800, "before, and since the boot");
}

#[test]
fn an_activation_is_written_down_step_by_step() {
    let (old, new) = (release("1.0.0"), release("2.0.0"));
    let mut record = running(&old);
    let second = order(2, &new);
    accept(&mut record, second.clone());
    assert_eq!(record.local.highest, second.fence);
    assert_eq!(*progress(&record), Progress::Begun { step: Step::Prepare, attempt: 1 });
    assert_eq!(record.confirm_left_ms(at(9)), None, "nothing is drained yet");
    record.begin(Step::Drain, 1, at(1_000));
    assert_eq!(record.confirm_left_ms(at(3_000)), Some(58_000));
    record.done(Step::Drain, 1);
    record.begin(Step::Stop, 1, at(5_000));
    assert_eq!(record.confirm_left_ms(at(61_000)), Some(0), "since the drain, not the stop");
    record.begin(Step::Switch, 1, at(6_000));
    assert_eq!(record.local.current, Some(old.clone()));
    record.done(Step::Switch, 1);
    assert_eq!(record.local.current, Some(new));
    record.complete();
    assert_eq!((record.confirm_left_ms(at(9_000)), record.takes_traffic()), (None, Ok(())));

    record.undone("cut off".to_owned());
    assert_eq!((record.local.current.as_ref(), record.takes_traffic()), (Some(&old), Ok(())));
}

#[test]
fn what_was_started_is_started_again_with_the_machine() {
    let mut record = running(&release("1.0.0"));
    accept(&mut record, order(2, &release("2.0.0")));
    let mut under_way = Vec::new();
    for step in [Step::Drain, Step::Stop, Step::Switch, Step::Start, Step::Check, Step::WarmUp] {
        record.begin(step, 1, at(0));
        let begun = record.under_way();
        record.done(step, 1);
        under_way.push((begun, record.under_way()));
    }
    let (no, yes) = ((false, false), (true, true));
    assert_eq!(under_way, [no, yes, yes, (true, false), no, no]);
    record.begin(Step::Undo, 1, at(0));
    assert!(record.under_way(), "the undo starts the old release");
}

#[test]
fn a_step_that_was_begun_too_often_has_failed() {
    let mut record = AppRecord::default();
    accept(&mut record, order(1, &release("1.0.0")));
    assert_eq!(record.given_up(20).blame, Blame::Surroundings);
    record.later = Some("before-install".to_owned());
    record.begin(Step::Switch, 2, at(0));
    assert_eq!(record.given_up(20).blame, Blame::Release, "its hook asked for it");
    record.begin(Step::Switch, 1, at(0));
    assert_eq!(record.later, None, "another step");
}

#[test]
fn the_way_back_leads_to_what_ran_well_and_is_on_disk() {
    let (good, bad, next) = (release("1.0.0"), release("2.0.0"), release("3.0.0"));
    let mut record = running(&good);
    accept(&mut record, order(2, &bad));
    assert_eq!(previous(&record), Some(&good));
    record.done(Step::Switch, 1);
    record.fail(Step::Check, 1, failure(Blame::Release, "unhealthy"));
    // To the group, the bad release was running here when the next order was given.
    let mut third = order(3, &next);
    third.undo_to = Some(bad.clone());
    let mut gone = record.clone();
    accept(&mut record, third.clone());
    assert_eq!(previous(&record), Some(&good));
    gone.accept(third, Step::Prepare, |_| false, at(0));
    assert_eq!(previous(&gone), None, "it is not on disk any more");

    let mut record = AppRecord::default();
    accept(&mut record, order(1, &bad));
    record.done(Step::Switch, 1);
    record.fail(Step::Check, 1, failure(Blame::Release, "unhealthy"));
    accept(&mut record, order(2, &next));
    assert_eq!(previous(&record), None, "nothing ever ran well");
}

#[test]
fn traffic_follows_the_record() {
    assert_eq!(AppRecord::default().takes_traffic(), Err(NoTraffic::NothingInstalled));
    let mut record = running(&release("1.0.0"));
    accept(&mut record, order(2, &release("2.0.0")));
    assert_eq!(record.takes_traffic(), Ok(()), "still before its drain");
    record.begin(Step::Drain, 1, at(0));
    assert_eq!(record.takes_traffic(), Err(NoTraffic::Installing));
    record.done(Step::Drain, 1);
    record.fail(Step::Stop, 1, failure(Blame::Surroundings, "no guard"));
    assert_eq!(record.takes_traffic(), Err(NoTraffic::Failed { reason: "no guard".to_owned() }));
    // The next order does not return traffic either.
    accept(&mut record, order(3, &release("2.0.0")));
    assert_eq!(record.takes_traffic(), Err(NoTraffic::Installing));
}

#[test]
fn a_stopped_service_is_left_to_the_steps_of_its_activation() {
    let mut record = running(&release("1.0.0"));
    accept(&mut record, order(2, &release("2.0.0")));
    record.begin(Step::Drain, 1, at(0));
    assert!(!record.under_way());
    record.begin(Step::Stop, 1, at(0));
    assert!(record.under_way());
    record.undone("cut off".to_owned());
    assert!(!record.under_way());
}

#[test]
fn only_a_drained_wave_serves_again_while_it_waits() {
    let old = release("1.0.0");
    for purpose in [Purpose::Wave, Purpose::RollBack, Purpose::Debt] {
        let mut record = running(&old);
        accept(&mut record, ActivationOrder { purpose, ..order(2, &release("2.0.0")) });
        assert_eq!(record.undrain_to(), None, "{purpose:?}: nothing is drained");
        record.begin(Step::Drain, 1, at(0));
        record.done(Step::Drain, 1);
        let serves = (purpose == Purpose::Wave).then_some(&old);
        assert_eq!(record.undrain_to(), serves, "{purpose:?}");
        record.begin(Step::Stop, 1, at(0));
        assert_eq!(record.undrain_to(), None, "{purpose:?}: it is stopped");
        record.undrained();
        assert_eq!(*progress(&record), Progress::Done { step: Step::Prepare, attempt: 1 });
        assert!(!record.blocked && record.confirm.is_none());
    }
}

#[test]
fn the_host_goes_back_once_it_may_and_the_last_answer_is_too_old() {
    let revert = release("1.0.0");
    let forward_only = Release { rollback: Rollback::ForwardOnly, ..revert.clone() };
    // Purpose, release, and whether the host may go back: after the drain, and after the stop.
    for (purpose, release_to, after) in [
        (Purpose::RollBack, &revert, [false, false]),
        (Purpose::Wave, &forward_only, [true, false]),
        (Purpose::Wave, &revert, [true, true]),
    ] {
        let mut record = running(&release("2.0.0"));
        let mut reached = Reached::new(0);
        let order = ActivationOrder { purpose, confirm_within_ms: 0, ..order(2, release_to) };
        accept(&mut record, order);
        assert_eq!(record.undo_left_ms(reached, at(9)), None, "nothing is drained");
        for (step, may, begun_ms) in
            [(Step::Drain, after[0], 10_000), (Step::Stop, after[1], 30_000)]
        {
            record.begin(step, 1, at(begun_ms));
            reached.begin(step, begun_ms);
            let left_ms = |reached, ms| record.undo_left_ms(reached, at(begun_ms + ms));
            assert_eq!(left_ms(reached, 1), may.then_some(0), "{step:?}: not reached since");
            reached.heard(begun_ms + 1_000);
            // Between two responses it stays, however short `confirm_within` is.
            assert_eq!(left_ms(reached, 2_000), may.then_some(5_000), "{step:?}");
            assert_eq!(left_ms(reached, 9_000), may.then_some(0), "{step:?}");
        }
    }
}
