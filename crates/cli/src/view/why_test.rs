use crate::view::report::report_test::report;
use crate::view::sample::{held, moving, rolling, server, settled};
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

#[test]
fn bytes_that_are_awaited_say_where_they_are_and_offenders_are_named() {
    assert_eq!(
        text(&waits(&report([moving()]))),
        "\
intel.zone-a
  web: downloading to web-2 (web-2: 20.0 MiB of 64.0 MiB; from web-1) (for 3s)
    -> goes on by itself
  web: web-3 sent wrong bytes: so says web-2
    -> goes on by itself from others; look at the disk and memory of web-3
"
    );
    let of = |name: &str| {
        let all = server_waits(&moving(), &server(name));
        all.iter().filter(|wait| wait.sentence.contains("wrong bytes")).count()
    };
    assert_eq!([of("web-1"), of("web-2"), of("web-3")], [0, 1, 1]);
    let mut later = moving();
    let transfer = &mut later.transfers[0];
    (transfer.under_way, transfer.took_ms, transfer.for_ms) = (false, Some(5_000), 700_000);
    assert_eq!(server_waits(&later, &server("web-3")).len(), of_all(&later) - 1);
}

/// Waits of `web-3` while the transfer goes on.
fn of_all(status: &cohort_wire::agent::GroupStatus) -> usize {
    let mut status = status.clone();
    status.transfers[0].under_way = true;
    server_waits(&status, &server("web-3")).len()
}
