//! What stands on the disk of every server: an example of each kind is in `golden/`.

mod common;

use std::path::Path;

use cohort_base::golden::hold;
use cohort_core::ids::{Generation, Incarnation};
use cohort_core::orders::{ActivationOrder, Fence, Purpose};
use cohort_core::report::{Blame, Step};
use cohort_core::steps::{AppRecord, BootTime, Failure};
use common::release;

fn record(step: Step) -> AppRecord {
    let now = BootTime { boot: "b1", ms: 1_000 };
    let order = ActivationOrder {
        fence: Fence { incarnation: Incarnation(1), generation: Generation(2) },
        release: Some(release(2)),
        undo_to: Some(release(1)),
        purpose: Purpose::Wave,
        avoid: Vec::new(),
        drain_ms: 1,
        min_healthy_ms: 2,
        healthy_deadline_ms: 3,
        confirm_within_ms: 4,
        warm_up_ms: 5,
        checks: Vec::new(),
        begin: true,
    };
    let mut record = AppRecord::default();
    record.local.current = Some(release(1));
    record.accept(order, Step::Prepare, |_| true, now);
    record.begin(step, 2, now);
    record
}

#[test]
fn records_of_apps_are_read_by_every_later_version() {
    let begun = record(Step::Drain);
    let mut done = record(Step::Switch);
    done.done(Step::Switch, 2);
    let mut failed = record(Step::Check);
    let (reason, output) = ("status 500".to_owned(), "panic".to_owned());
    failed.fail(Step::Check, 2, Failure { blame: Blame::Release, reason, output });
    let mut undone = record(Step::Undo);
    undone.undone("not reached".to_owned());
    let mut complete = record(Step::WarmUp);
    complete.complete();
    let records = [AppRecord::default(), begun, done, failed, undone, complete];
    hold(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/app-record.jsonl"), &records);
}
