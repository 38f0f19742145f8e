use std::time::Duration;

use super::{ANSWERS_MIN, percentiles};

#[test]
fn percentiles_need_enough_answers() {
    let times: Vec<Duration> = (0..=1000).rev().map(Duration::from_millis).collect();
    assert_eq!(percentiles(times).ok(), Some([500.0, 990.0, 1000.0]));
    assert!(percentiles(vec![Duration::ZERO; ANSWERS_MIN - 1]).is_err());
}
