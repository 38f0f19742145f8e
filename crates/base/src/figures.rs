//! Sizes, rates and durations, as short as possible.

/// Bytes in the largest binary unit that fits: `1023 B`, `1.5 MiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    if count < 1024 {
        return format!("{count} B");
    }
    scaled(u128::from(count) * 10 / 1024, 1024, ["KiB", "MiB", "GiB", "TiB"])
}

/// A rate in the units that networks are sold in, from bytes per second: `48.9 Mbit/s`.
#[must_use]
pub fn bits(bytes_per_second: u64) -> String {
    let tenths = u128::from(bytes_per_second) * 8 / 100;
    scaled(tenths, 1000, ["kbit/s", "Mbit/s", "Gbit/s", "Tbit/s"])
}

fn scaled(mut tenths: u128, step: u128, units: [&str; 4]) -> String {
    let mut unit = 0;
    while tenths >= step * 10 && unit + 1 < units.len() {
        tenths /= step;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, units[unit])
}

/// A duration in one or two units: `0s`, `42s`, `3m 20s`, `2h 5m`, `4d 1h`.
#[must_use]
pub fn brief(ms: u64) -> String {
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
#[path = "figures_test.rs"]
mod figures_test;
