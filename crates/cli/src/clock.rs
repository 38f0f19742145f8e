//! The time of day, and durations for people.

pub(crate) use cohort_agent::figures::{bits, bytes};
use cohort_identity::UnixTime;

/// Now, in seconds of Unix time.
pub(crate) fn unix_now() -> u64 {
    UnixTime::now().as_secs()
}

/// A duration in one or two units: `0s`, `42s`, `3m 20s`, `2h 5m`, `4d 1h`.
pub(crate) fn brief(ms: u64) -> String {
    let s = ms / 1000;
    let two = |a: u64, unit_a: &str, b: u64, unit_b: &str| match b {
        0 => format!("{a}{unit_a}"),
        _ => format!("{a}{unit_a} {b}{unit_b}"),
    };
    match s {
        0..60 => format!("{s}s"),
        60..3600 => two(s / 60, "m", s % 60, "s"),
        3600..86_400 => two(s / 3600, "h", s % 3600 / 60, "m"),
        _ => two(s / 86_400, "d", s % 86_400 / 3600, "h"),
    }
}

#[cfg(test)]
mod clock_test {
    use super::{bits, brief, bytes};

    #[test]
    fn durations_and_sizes_are_short() {
        let texts: Vec<String> =
            [0, 42_999, 60_000, 200_000, 7_500_000, 349_200_000].map(brief).into();
        assert_eq!(texts, ["0s", "42s", "1m", "3m 20s", "2h 5m", "4d 1h"]);
        let texts: Vec<String> = [1023, 1024, 1_572_864, 1 << 30].map(bytes).into();
        assert_eq!(texts, ["1023 B", "1.0 KiB", "1.5 MiB", "1.0 GiB"]);
        let texts: Vec<String> = [125, 6_112_500, 125_000_000].map(bits).into();
        assert_eq!(texts, ["1.0 kbit/s", "48.9 Mbit/s", "1.0 Gbit/s"]);
    }
}
