//! What the processes say, with the time at which they said it: they share this machine's clock.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, bail};
use cohort_trial::Fleet;

/// How often the logs are looked at while something is waited for: the figures come from the
/// times in the logs, this only decides when a signal is sent.
const LOOK_EVERY: Duration = Duration::from_millis(3);

/// One line of a log.
#[derive(Debug, Clone)]
pub(crate) struct Line {
    /// Milliseconds since 1970.
    pub at_ms: f64,
    /// Everything after the time.
    text: String,
}

impl Line {
    fn parse(line: &str) -> Option<Line> {
        let (time, text) = line.split_once(' ')?;
        let at: jiff::Timestamp = time.parse().ok()?;
        let at_ms = at.as_microsecond() as f64 / 1000.0;
        Some(Line { at_ms, text: text.trim_start().to_owned() })
    }

    /// Whether it says this.
    pub(crate) fn says(&self, message: &str) -> bool {
        self.text.contains(message)
    }

    /// The value of a field, without quotation marks.
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let needle = format!(" {name}=");
        let at = self.text.find(&needle)? + needle.len();
        self.text[at..].split(' ').next().map(|value| value.trim_matches('"'))
    }
}

/// The log of one agent.
pub(crate) fn path_of(fleet: &Fleet, server: &str) -> PathBuf {
    fleet.dir().join("logs").join(format!("{server}.log"))
}

/// All lines of a log so far, in order.
pub(crate) fn read(path: &Path) -> Result<Vec<Line>> {
    let text = fs::read(path).with_context(|| format!("log {}", path.display()))?;
    Ok(String::from_utf8_lossy(&text).lines().filter_map(Line::parse).collect())
}

/// This moment on the clock of the logs.
pub(crate) fn now_ms() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64() * 1000.0
}

/// Waits until one of the servers says, after `after_ms`, what is looked for. The first such line.
pub(crate) fn wait_for(
    fleet: &Fleet,
    after_ms: f64,
    patience: Duration,
    what: &str,
    found: impl Fn(&str, &Line) -> bool,
) -> Result<(String, Line)> {
    let begun = Instant::now();
    loop {
        let mut first: Option<(String, Line)> = None;
        for server in fleet.agents().keys() {
            let lines = read(&path_of(fleet, server)).unwrap_or_default();
            let line = lines.into_iter().find(|line| line.at_ms > after_ms && found(server, line));
            if let Some(line) = line
                && first.as_ref().is_none_or(|(_, known)| line.at_ms < known.at_ms)
            {
                first = Some((server.clone(), line));
            }
        }
        if let Some(first) = first {
            return Ok(first);
        }
        if begun.elapsed() > patience {
            bail!("{what}: not seen within {} s", patience.as_secs());
        }
        std::thread::sleep(LOOK_EVERY);
    }
}
