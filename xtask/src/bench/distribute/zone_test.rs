use std::collections::BTreeMap;

use super::{Links, Seconds, Transfer};

#[test]
fn the_limit_is_the_slower_link() {
    let links = |downlink_mbit, nic_mbit| Links { servers: 10, downlink_mbit, nic_mbit };
    assert_eq!(links(50, 250).limit_s(6_250_000), 1.0);
    assert_eq!(links(100, 50).limit_s(6_250_000), 1.0);
}

#[test]
fn a_transfer_ends_with_the_last_server_that_counts() {
    let transfer = Transfer {
        limit_s: 2.0,
        ends: BTreeMap::from([("a".to_owned(), 3.0), ("b".to_owned(), 2.5)]),
        since_channel_s: 3.5,
        wan: 1.0,
        wan_bytes: 1,
        cpu: Seconds::default(),
        carried: Vec::new(),
        wrong_units: 0,
    };
    assert_eq!(transfer.ratio(), 1.5);
    assert_eq!(transfer.end_s(&["a"]), 2.5);
    assert_eq!(transfer.end_s(&["a", "b"]), 0.0);
}
