use cohort_core::ids::Digest;
use cohort_wire::agent::GroupStatus;

use super::{Basis, By, Difference, Moving, moving, text};
use crate::sample::{app, rolling, server, settled, version};

const MIB: u64 = 1 << 20;

fn root(of: &str) -> Digest {
    of.repeat(32).parse().unwrap()
}

fn of(status: &GroupStatus, differences: &[Difference]) -> Moving {
    moving(status, &app(), &version("1.1.0"), 64 * MIB, differences, Some(&root("aa")))
}

fn measured(rate: u64) -> GroupStatus {
    let mut status = settled();
    status.downlink_bytes_per_second = Some(rate);
    status
}

#[test]
fn the_whole_crosses_the_downlink_once_and_then_goes_from_server_to_server() {
    let moving = of(&settled(), &[]);
    assert_eq!((moving.by, moving.servers, moving.bytes_per_server), (By::Whole, 3, 64 * MIB));
    assert_eq!((moving.bytes_from_mirror, moving.bytes_from_peers), (64 * MIB, 128 * MIB));
    assert_eq!((moving.estimate_ms, moving.estimate_by), (None, None));
}

#[test]
fn the_last_transfer_tells_how_long_this_one_takes() {
    let moving = of(&measured(6_100_000), &[]);
    assert_eq!(moving.estimate_ms, Some(11_001));
    assert_eq!(moving.estimate_by, Some(Basis::LastTransfer));
    assert!(text(&moving).contains("about 11s at 48.8 Mbit/s"), "{}", text(&moving));
}

#[test]
fn a_download_limit_counts_when_it_is_lower_or_all_that_is_known() {
    let mut status = measured(6_100_000);
    status.download_limit_bytes_per_second = Some(2 * MIB);
    let lower = of(&status, &[]);
    assert_eq!((lower.estimate_ms, lower.estimate_by), (Some(32_000), Some(Basis::DownloadLimit)));
    assert!(text(&lower).contains("about 32s at download_limit, 16.7 Mbit/s"), "{lower:?}");

    status.download_limit_bytes_per_second = Some(100 * MIB);
    assert_eq!(of(&status, &[]).estimate_by, Some(Basis::LastTransfer));

    status.downlink_bytes_per_second = None;
    let only = of(&status, &[]);
    assert_eq!((only.estimate_ms, only.estimate_by), (Some(640), Some(Basis::DownloadLimit)));
    assert!(text(&only).contains("at least 1s at download_limit"), "{}", text(&only));
    status.download_limit_bytes_per_second = Some(0);
    assert_eq!(of(&status, &[]).estimate_ms, None, "a limit of 0 gives no estimate");
}

#[test]
fn a_delta_is_taken_when_it_starts_from_what_all_run_and_is_smaller() {
    let difference = |from: &str, length| Difference { from: root(from), length };
    let fitting = [difference("bb", 10), difference("aa", 4 * MIB), difference("aa", 5 * MIB)];
    let delta = of(&measured(2 * MIB), &fitting);
    assert_eq!((delta.by, delta.bytes_per_server), (By::Delta, 4 * MIB));
    assert_eq!((delta.bytes_from_mirror, delta.bytes_from_peers), (4 * MIB, 8 * MIB));
    assert_eq!((delta.from, delta.estimate_ms), (Some(version("1.0.0")), Some(2_000)));
    assert_eq!(of(&settled(), &[difference("aa", 64 * MIB)]).by, By::Whole, "no smaller");
    assert_eq!(of(&settled(), &[difference("bb", 10)]).by, By::Whole, "from another release");
    let mut mixed = settled();
    let one = mixed.apps.get_mut(&app()).unwrap().servers.get_mut(&server("web-2")).unwrap();
    one.running = Some(version("0.9.0"));
    let two = of(&mixed, &fitting);
    assert_eq!((two.by, two.servers, two.servers_without_base), (By::Delta, 3, 1));
    assert_eq!((two.bytes_from_mirror, two.bytes_from_peers), (4 * MIB, (4 + 64) * MIB));
    assert!(text(&two).contains("2 servers and the whole artifact to 1 server"), "{}", text(&two));
    for here in mixed.apps.get_mut(&app()).unwrap().servers.values_mut() {
        here.running = Some(version("0.9.0"));
    }
    assert_eq!(of(&mixed, &fitting).by, By::Whole, "no server runs what it starts from");
}

#[test]
fn what_servers_have_already_is_not_fetched_again() {
    let mut status = rolling();
    for here in status.apps.get_mut(&app()).unwrap().servers.values_mut() {
        here.holds_target = true;
    }
    let nothing = of(&status, &[]);
    assert_eq!((nothing.by, nothing.servers, nothing.estimate_ms), (By::Nothing, 0, Some(0)));

    let third = status.apps.get_mut(&app()).unwrap().servers.get_mut(&server("web-3")).unwrap();
    third.holds_target = false;
    let one = of(&status, &[]);
    assert_eq!((one.servers, one.bytes_from_mirror, one.bytes_from_peers), (1, 0, 64 * MIB));
    assert_eq!(one.estimate_ms, None);
}
