//! Bytes, rates and times in texts for people.

/// Bytes in the largest fitting binary unit: `1023 B`, `1.5 MiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let (mut tenths, mut unit) = (u128::from(count) * 10 / 1024, 0);
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// A rate as networks are sold: `48.9 Mbit/s`.
#[must_use]
pub fn bits(bytes_per_second: u64) -> String {
    const UNITS: [&str; 4] = ["kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"];
    let (mut tenths, mut unit) = (u128::from(bytes_per_second) * 8 / 100, 0);
    while tenths >= 10_000 && unit + 1 < UNITS.len() {
        tenths /= 1000;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// A time in one or two units: `9 s`, `3 min 20 s`, `2 h 5 min`.
pub(crate) fn time(ms: u64) -> String {
    let s = ms.div_ceil(1000);
    let two = |a: u64, unit_a: &str, b: u64, unit_b: &str| match b {
        0 => format!("{a} {unit_a}"),
        _ => format!("{a} {unit_a} {b} {unit_b}"),
    };
    match s {
        0..60 => format!("{s} s"),
        60..3600 => two(s / 60, "min", s % 60, "s"),
        _ => two(s / 3600, "h", s % 3600 / 60, "min"),
    }
}

#[cfg(test)]
mod figures_test {
    use super::{bits, bytes, time};

    #[test]
    fn figures_have_one_decimal_and_the_largest_fitting_unit() {
        assert_eq!(
            [1023, 1024, 1_572_864, 1 << 30].map(bytes),
            ["1023 B", "1.0 KiB", "1.5 MiB", "1.0 GiB"]
        );
        assert!(bytes(u64::MAX).ends_with(" TiB"));
        assert_eq!(
            [0, 125, 6_112_500, 125_000_000].map(bits),
            ["0.0 kbit/s", "1.0 kbit/s", "48.9 Mbit/s", "1.0 Gbit/s"]
        );
        assert_eq!(
            [0, 1, 9_000, 200_000, 7_500_000].map(time),
            ["0 s", "1 s", "9 s", "3 min 20 s", "2 h 5 min"]
        );
    }
}
