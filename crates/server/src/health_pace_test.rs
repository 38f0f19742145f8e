use cohort_core::ids::BootEpoch;
use cohort_core::orders::Fence;
use cohort_core::report::{Outcome, Report};

use super::HealthPace;

fn report(server: &str, outcome: Outcome) -> Report {
    Report {
        server: server.parse().unwrap(),
        boot_epoch: BootEpoch(1),
        sequence: 1,
        app: "web".parse().unwrap(),
        fence: Fence::default(),
        attempt: 1,
        outcome,
    }
}

#[test]
fn an_agent_that_repeats_its_health_is_slowed_down_and_nothing_else_is() {
    let mut pace = HealthPace::default();
    let health = || Outcome::Health { in_service: true, reason: String::new() };
    let of = |pace: &mut HealthPace, ms: std::ops::Range<u64>| {
        ms.filter(|ms| pace.accepts(&report("s1", health()), *ms)).count()
    };
    assert_eq!(of(&mut pace, 0..1_000), 96);
    assert_eq!(of(&mut pace, 1_000..61_000), 6);
    assert!(pace.accepts(&report("s1", Outcome::Applied), 61_000));
    assert!(pace.accepts(&report("s2", health()), 61_000));
    assert_eq!(of(&mut pace, 1_361_000..1_362_000), 96, "after a rest");
}
