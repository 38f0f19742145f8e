use super::record::AppRecord;
use super::{BootTime, Moment, StepAction, StepWait, next_action};
use crate::ids::{AppId, Generation, Incarnation};
use crate::orders::{ActivationOrder, AppOrders, Fence, Hold, Purpose};
use crate::release::{Release, Rollback};
use crate::report::{Outcome, Step};

const NOW: BootTime<'_> = BootTime { boot: "this", ms: 0 };
const KILLED: Moment = Moment {
    orders_fresh: true,
    killed: true,
    confirmed: false,
    reached_since_stop: true,
    confirm_expired: false,
};
/// The group has been out of reach for `confirm_within`.
const ABANDONED: Moment = Moment {
    orders_fresh: false,
    killed: false,
    confirmed: false,
    reached_since_stop: false,
    confirm_expired: true,
};

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

fn order(purpose: Purpose) -> ActivationOrder {
    ActivationOrder {
        fence: Fence { incarnation: Incarnation(1), generation: Generation(2) },
        release: Some(release("2.0.0")),
        undo_to: None,
        purpose,
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

/// What a server does that was at this step when it lost power, or that has ended it.
fn after(purpose: Purpose, step: Step, done: bool, moment: Moment) -> StepAction {
    let mut record = AppRecord::default();
    record.local.current = Some(release("1.0.0"));
    record.accept(order(purpose), Step::Prepare, |_| true, NOW);
    record.begin(step, 1, NOW);
    if done {
        record.done(step, 1);
    }
    next_action(None, &record.local, &[], moment).step
}

#[test]
fn a_server_that_lost_power_while_it_stopped_its_service_goes_on_under_the_kill_switch() {
    let wait = StepAction::Wait(StepWait::FreshOrders);
    assert_eq!(after(Purpose::Wave, Step::HandOver, true, KILLED), wait, "it serves");
    for purpose in [Purpose::Wave, Purpose::RollBack, Purpose::Debt] {
        let again = StepAction::Run { step: Step::Stop, attempt: 2 };
        assert_eq!(after(purpose, Step::Stop, false, KILLED), again);
        let on = StepAction::Run { step: Step::Switch, attempt: 1 };
        assert_eq!(after(purpose, Step::Stop, true, KILLED), on);
    }
}

#[test]
fn a_rollback_that_lost_its_group_finishes_alone_in_every_step() {
    let steps = [
        (Step::Drain, Step::HandOver),
        (Step::HandOver, Step::Stop),
        (Step::Stop, Step::Switch),
        (Step::Switch, Step::Start),
        (Step::Start, Step::Check),
        (Step::Check, Step::WarmUp),
    ];
    for (step, next) in steps {
        let on = StepAction::Run { step: next, attempt: 1 };
        assert_eq!(after(Purpose::RollBack, step, true, ABANDONED), on, "{step:?}");
        let begun = after(Purpose::RollBack, step, false, ABANDONED);
        assert_eq!(begun, StepAction::Run { step, attempt: 2 });
    }
    assert_eq!(after(Purpose::RollBack, Step::WarmUp, true, ABANDONED), StepAction::Complete);
    // Not before its time, not while it serves, and no change towards something new.
    let early = Moment { confirm_expired: false, ..ABANDONED };
    let waits = StepAction::Wait(StepWait::Confirmation);
    assert_eq!(after(Purpose::RollBack, Step::Check, true, early), waits);
    let waits = StepAction::Wait(StepWait::FreshOrders);
    assert_eq!(after(Purpose::RollBack, Step::Prepare, true, ABANDONED), waits);
    let undo = after(Purpose::Wave, Step::Check, true, ABANDONED);
    assert!(matches!(undo, StepAction::Undo { .. }), "{undo:?}");
}

/// What a server with this record does if its latest orders have this activation.
fn ordered(record: &AppRecord, order: ActivationOrder) -> StepAction {
    let orders = AppOrders {
        app: AppId::new("web").unwrap(),
        fetch: Vec::new(),
        activation: Some(order),
        run: None,
        owes: false,
        in_service: None,
        checks: Vec::new(),
        trial: None,
        keep: Vec::new(),
        holds: Vec::new(),
    };
    let moment = Moment { orders_fresh: true, ..Moment::default() };
    next_action(Some(&orders), &record.local, &[release("2.0.0").artifact], moment).step
}

#[test]
fn a_withdrawn_order_is_given_back_until_the_server_leaves_traffic_and_never_begins_later() {
    let order = order(Purpose::Wave);
    let withdrawn = ActivationOrder { hold: Some(Hold::Withdrawn), ..order.clone() };
    let gives_back = StepAction::GiveBack { order: withdrawn.clone() };
    let mut unaccepted = AppRecord::default();
    unaccepted.local.current = Some(release("1.0.0"));
    let mut prepared = unaccepted.clone();
    prepared.accept(order.clone(), Step::Prepare, |_| true, NOW);
    prepared.done(Step::Prepare, 1);
    for mut record in [unaccepted, prepared.clone()] {
        assert_eq!(ordered(&record, withdrawn.clone()), gives_back);
        record.give_back(withdrawn.clone(), |_| true);
        let outcome = record.local.activation.as_ref().unwrap().outcome();
        assert_eq!(outcome, Some((1, Outcome::GivenBack)));
        assert!(record.takes_traffic().is_ok() && !record.under_way());
        assert_eq!(record.local.current, Some(release("1.0.0")));
        // An earlier answer, without the hold, comes late.
        for late in [&withdrawn, &order] {
            assert_eq!(ordered(&record, late.clone()), StepAction::Settled);
        }
    }
    prepared.begin(Step::Drain, 1, NOW);
    let goes_on = StepAction::Run { step: Step::Drain, attempt: 2 };
    assert_eq!(ordered(&prepared, withdrawn), goes_on);
}

#[test]
fn a_withdrawn_order_is_not_given_back_by_a_server_that_is_out_of_traffic_for_the_one_before() {
    let first = order(Purpose::Wave);
    let mut record = AppRecord::default();
    record.local.current = Some(release("1.0.0"));
    record.accept(first.clone(), Step::Prepare, |_| true, NOW);
    record.begin(Step::Drain, 1, NOW);
    let fence = Fence { generation: Generation(3), ..first.fence };
    let second = ActivationOrder { fence, purpose: Purpose::RollBack, ..first };
    let withdrawn = ActivationOrder { hold: Some(Hold::Withdrawn), ..second.clone() };
    // Not before it accepts the second order, and not after.
    let accepts = StepAction::Accept { order: withdrawn.clone(), step: Step::Prepare };
    assert_eq!(ordered(&record, withdrawn.clone()), accepts);
    record.accept(second.clone(), Step::Prepare, |_| true, NOW);
    record.done(Step::Prepare, 1);
    let goes_on = StepAction::Run { step: Step::Drain, attempt: 1 };
    let held = ActivationOrder { hold: Some(Hold::Capacity), ..second };
    for order in [withdrawn, held] {
        assert_eq!(ordered(&record, order), goes_on);
    }
    assert!(record.takes_traffic().is_err());
}
