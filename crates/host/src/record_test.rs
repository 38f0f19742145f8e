use cohort_core::report::{Blame, Step};
use cohort_core::steps::{BootTime, Failure};

use super::*;
use crate::testing::{golden, order, release_of};

#[test]
fn every_kind_of_progress() {
    let now = BootTime { boot: "b", ms: 1_000 };
    let (old, new) = (release_of("1.0.0"), release_of("2.0.0"));
    let mut order = order(4, Some(&new));
    order.undo_to = Some(old.clone());
    let mut begun = AppRecord::default();
    begun.local.current = Some(old);
    begun.accept(order, Step::Prepare, |_| true, now);
    let mut records = vec![AppRecord::default(), begun.clone()];
    let mut done = begun.clone();
    done.done(Step::Prepare, 1);
    records.push(done.clone());
    done.begin(Step::Drain, 1, now);
    done.later = Some("before-block-traffic".into());
    records.push(done.clone());
    let mut failed = done.clone();
    let (reason, output) = ("exit status 1".into(), "out of memory\n".into());
    failed.fail(Step::Drain, 1, Failure { blame: Blame::Release, reason, output });
    records.push(failed);
    done.begin(Step::Switch, 1, now);
    done.done(Step::Switch, 1);
    records.push(done.clone());
    let mut complete = done.clone();
    complete.complete();
    done.undone("not confirmed".into());
    records.extend([complete, done]);
    cohort_base::golden::hold(&golden("record.jsonl"), &records);
}
