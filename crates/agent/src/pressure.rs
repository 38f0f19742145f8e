//! Pressure stall information: how long tasks wait for the disk and for a processor (Linux PSI).
//!
//! `/proc/pressure/io` and `cpu` cover the whole machine; a cgroup v2 folder such as
//! `/sys/fs/cgroup/system.slice/web.service` covers one service in `io.pressure` and
//! `cpu.pressure`:
//!
//! ```text
//! some avg10=0.22 avg60=0.17 avg300=1.11 total=58761459
//! full avg10=0.23 avg60=0.16 avg300=1.08 total=58464525
//! ```
//!
//! `total` counts the microseconds in which some task waited. A kernel without these files, or one
//! that denies access, is not an error: transfers then yield to nobody.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::yielding::Pressure;

/// A file has two lines of about 60 bytes.
const FILE_BYTES_MAX: u64 = 1_024;

/// Two looks closer together than this tell nothing.
const OVER_MIN: Duration = Duration::from_millis(50);

/// Which pressure is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Watched {
    pub io: bool,
    pub cpu: bool,
}

/// Reads the kernel's counters and returns the pressure between two looks.
#[derive(Debug)]
pub(crate) struct Gauge {
    folder: PathBuf,
    watched: Watched,
    before: Option<Counted>,
}

#[derive(Debug, Clone, Copy)]
struct Counted {
    at: Instant,
    io_us: Option<u64>,
    cpu_us: Option<u64>,
}

impl Gauge {
    pub(crate) fn new(folder: &Path, watched: Watched) -> Self {
        Self { folder: folder.to_owned(), watched, before: None }
    }

    /// The average over the last five minutes, by the kernel's own measure.
    pub(crate) fn usual(&self) -> Pressure {
        let of = |name: &str, watched: bool| {
            watched.then(|| self.read(name)).flatten().map(|line| line.usual)
        };
        Pressure {
            io: of("io", self.watched.io).unwrap_or(0),
            cpu: of("cpu", self.watched.cpu).unwrap_or(0),
        }
    }

    /// The pressure since the last look; `None` at the first one, or if nothing can be read.
    pub(crate) fn look(&mut self, now: Instant) -> Option<Pressure> {
        let of = |name: &str, watched: bool| {
            watched.then(|| self.read(name)).flatten().map(|line| line.total_us)
        };
        let io_us = of("io", self.watched.io);
        let cpu_us = of("cpu", self.watched.cpu);
        if io_us.is_none() && cpu_us.is_none() {
            self.before = None;
            return None;
        }
        let counted = Counted { at: now, io_us, cpu_us };
        let Some(before) = self.before else {
            self.before = Some(counted);
            return None;
        };
        let over = now.saturating_duration_since(before.at);
        if over < OVER_MIN {
            return None;
        }
        self.before = Some(counted);
        Some(Pressure {
            io: part(before.io_us, io_us, over),
            cpu: part(before.cpu_us, cpu_us, over),
        })
    }

    fn read(&self, name: &str) -> Option<Line> {
        let open = |name: &str| File::open(self.folder.join(name));
        let file = open(name).or_else(|_| open(&format!("{name}.pressure"))).ok()?;
        let mut text = String::new();
        file.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
        parse(&text)
    }
}

/// The share of the time between two counts, in thousandths.
fn part(before: Option<u64>, after: Option<u64>, over: Duration) -> u32 {
    let (Some(before), Some(after)) = (before, after) else { return 0 };
    let waited_us = u128::from(after.saturating_sub(before));
    let thousandths = waited_us * 1_000 / over.as_micros().max(1);
    u32::try_from(thousandths.min(1_000)).unwrap_or(1_000)
}

#[derive(Debug, PartialEq, Eq)]
struct Line {
    /// Average over five minutes, in thousandths.
    usual: u32,
    total_us: u64,
}

fn parse(text: &str) -> Option<Line> {
    let line = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let value = |key: &str| line.split(' ').find_map(|word| word.strip_prefix(key));
    let total_us = value("total=")?.parse().ok()?;
    // Per cent with two decimals; an unreadable value counts as none.
    let digits: String = value("avg300=").unwrap_or("0").chars().filter(|c| *c != '.').collect();
    let usual = digits.parse::<u32>().map_or(0, |hundredths| (hundredths / 10).min(1_000));
    Some(Line { usual, total_us })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;
    use std::time::{Duration, Instant};

    use super::{Gauge, Line, Watched, parse};
    use crate::yielding::Pressure;

    const BOTH: Watched = Watched { io: true, cpu: true };

    fn put(folder: &Path, name: &str, total: u64) {
        let text = format!(
            "some avg10=1.00 avg60=2.00 avg300=12.34 total={total}\n\
             full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
        );
        fs::write(folder.join(name), text).unwrap();
    }

    #[test]
    fn pressure_is_the_share_of_the_time_between_two_looks() {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), "io", 1_000_000);
        put(folder.path(), "cpu", 5_000_000);
        let mut gauge = Gauge::new(folder.path(), BOTH);
        let now = Instant::now();
        assert_eq!(gauge.usual(), Pressure { io: 123, cpu: 123 });
        assert_eq!(gauge.look(now), None, "the first look only counts");
        put(folder.path(), "io", 1_050_000);
        put(folder.path(), "cpu", 9_000_000);
        let quarter = Duration::from_millis(250);
        assert_eq!(gauge.look(now + quarter), Some(Pressure { io: 200, cpu: 1_000 }));
        assert_eq!(gauge.look(now + quarter), None, "too soon to tell");
        // A counter that was reset.
        put(folder.path(), "io", 3);
        put(folder.path(), "cpu", 9_000_000);
        assert_eq!(gauge.look(now + 2 * quarter), Some(Pressure::default()));
        let mut io_only = Gauge::new(folder.path(), Watched { io: true, cpu: false });
        io_only.look(now);
        put(folder.path(), "io", 25_003);
        put(folder.path(), "cpu", 19_000_000);
        assert_eq!(io_only.look(now + quarter), Some(Pressure { io: 100, cpu: 0 }));
    }

    #[test]
    fn a_service_of_its_own_cgroup_can_be_watched() {
        let folder = tempfile::tempdir().unwrap();
        put(folder.path(), "io.pressure", 10);
        let mut gauge = Gauge::new(folder.path(), BOTH);
        let now = Instant::now();
        gauge.look(now);
        put(folder.path(), "io.pressure", 100_010);
        let later = now + Duration::from_secs(1);
        assert_eq!(gauge.look(later), Some(Pressure { io: 100, cpu: 0 }));
    }

    #[test]
    fn a_kernel_without_psi_is_not_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let mut gauge = Gauge::new(&folder.path().join("absent"), BOTH);
        assert_eq!(gauge.usual(), Pressure::default());
        for seconds in 0..3 {
            assert_eq!(gauge.look(Instant::now() + Duration::from_secs(seconds)), None);
        }
        for strange in ["", "some", "some total=", "full total=3\n", "some total=-1\n", "\u{0}\n"] {
            fs::write(folder.path().join("io"), strange).unwrap();
            assert_eq!(Gauge::new(folder.path(), BOTH).usual(), Pressure::default(), "{strange:?}");
        }
        // Only `total` is required.
        assert_eq!(parse("some total=5\n"), Some(Line { usual: 0, total_us: 5 }));
        assert_eq!(parse("some avg300=x total=5\n"), Some(Line { usual: 0, total_us: 5 }));
    }
}
