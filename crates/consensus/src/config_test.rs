//! The bounds of a member's timing.

use crate::{Timing, TimingError};

#[test]
fn timing_within_the_bounds_is_accepted() {
    for (election_ms, heartbeat_ms) in [(500, 100), (250, 50), (2_000, 400), (2_000, 50)] {
        assert!(Timing::new(election_ms, heartbeat_ms).is_ok(), "{election_ms}, {heartbeat_ms}");
    }
}

#[test]
fn timing_out_of_bounds_is_refused() {
    for election_ms in [0, 249, 2_001, u64::MAX] {
        let refused = Timing::new(election_ms, 50);
        assert_eq!(refused, Err(TimingError::Election(election_ms)));
    }
    for (election_ms, heartbeat_ms) in [(500, 0), (500, 49), (500, 150), (2_000, 401 + 49)] {
        let refused = Timing::new(election_ms, heartbeat_ms);
        assert_eq!(refused, Err(TimingError::Heartbeat { heartbeat_ms, election_ms }));
    }
}
