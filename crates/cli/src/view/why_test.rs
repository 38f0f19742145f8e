use crate::view::report::report_test::report;
use crate::view::sample::{held, rolling, server, settled};
use crate::view::why::{server_waits, text, waits};

#[test]
fn every_wait_has_a_reason_and_what_unblocks_it() {
    assert_eq!(
        text(&waits(&report([held()]))),
        "\
intel.zone-a
  web: 1.1.0 is held: check failed on web-1: http: status 500 (for 1m 15s)
    -> a newer release, or: cohort rollout retry intel.zone-a --app web
  web: web-3 owes the good release: unreachable (for 1m 15s)
    -> start web-3; or: cohort rollout retry intel.zone-a --app web
"
    );
    assert_eq!(
        text(&waits(&report([settled()]))),
        "\
intel.zone-a
  web: runs what its channel points to (for 5s)
    -> cohort publish, cohort channel set
"
    );
}

#[test]
fn a_group_without_a_majority_says_whom_to_start() {
    let mut status = settled();
    status.linearizable = false;
    let seen = waits(&report([status]));
    assert_eq!(seen[0].sentence, "no majority of voters answers; web-1 tells what it last knew");
    assert_eq!(seen[0].unblocks, "start the agents of most of its voters: web-1, web-2, web-3");
}

#[test]
fn a_server_tells_its_own_step_first_and_then_what_names_it() {
    assert_eq!(
        text(&server_waits(&rolling(), &server("web-2"))),
        "\
intel.zone-a
  web-2, web: runs 1.1.0, takes no traffic (being changed), step: check (http: refused); heard 0s ago
  web-2, web: web-2: check (for 12s)
    -> goes on by itself
"
    );
    let turn = server_waits(&rolling(), &server("web-3"));
    assert_eq!(turn[0].sentence, "runs 1.0.0 (to be 1.1.0), takes traffic; heard 0s ago");
    assert_eq!(turn[1].sentence, "web-2: check", "its turn comes after web-2");
    let stranger = server_waits(&rolling(), &server("web-9"));
    assert_eq!(stranger[0].sentence, "joined the fleet, but its group does not know it yet");
}
