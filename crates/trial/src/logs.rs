//! Agents' logs, by the events of `cohort_base::events`.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::Fleet;

/// How often to read logs while waiting for an event. Measurements use the times in the logs; this
/// only bounds how late a test or benchmark reacts to an event.
const POLL_EVERY: Duration = Duration::from_millis(3);

/// One line of an agent's log.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// Milliseconds since 1970.
    pub at_ms: f64,
    /// Everything after the timestamp.
    text: String,
}

impl Line {
    /// `None` for lines without a timestamp, such as those of a panic.
    pub fn parse(line: &str) -> Option<Line> {
        let (time, text) = line.trim().split_once(' ')?;
        let at: jiff::Timestamp = time.parse().ok()?;
        let at_ms = at.as_microsecond() as f64 / 1000.0;
        Some(Line { at_ms, text: text.trim_start().to_owned() })
    }

    /// Whether it reports this event.
    pub fn is(&self, event: &str) -> bool {
        self.field("event") == Some(event)
    }

    /// The value of a field, without quotation marks.
    pub fn field(&self, name: &str) -> Option<&str> {
        let needle = format!(" {name}=");
        let value = &self.text[self.text.find(&needle)? + needle.len()..];
        match value.strip_prefix('"') {
            Some(quoted) => quoted.split('"').next(),
            None => value.split(' ').next(),
        }
    }
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// All lines of a log so far, oldest first.
pub fn read(path: &Path) -> Result<Vec<Line>> {
    let text = fs::read(path).with_context(|| format!("log {}", path.display()))?;
    Ok(String::from_utf8_lossy(&text).lines().filter_map(Line::parse).collect())
}

/// Follows the logs of all agents.
#[derive(Debug)]
pub struct Logs {
    files: BTreeMap<String, Followed>,
    /// Read, but not returned yet.
    pending: VecDeque<(String, Line)>,
}

#[derive(Debug)]
struct Followed {
    path: PathBuf,
    offset: u64,
    /// A line that is still incomplete.
    rest: Vec<u8>,
}

impl Logs {
    /// Follows the logs from their current ends.
    pub fn from_now(fleet: &Fleet) -> Logs {
        let files = fleet.agents().keys().map(|server| {
            let path = fleet.log_file(server);
            let offset = fs::metadata(&path).map_or(0, |about| about.len());
            (server.clone(), Followed { path, offset, rest: Vec::new() })
        });
        Logs { files: files.collect(), pending: VecDeque::new() }
    }

    /// Complete lines not returned yet, each with the server that wrote it, ordered by time as far
    /// as they have been read.
    pub fn news(&mut self) -> Vec<(String, Line)> {
        self.read();
        self.pending.drain(..).collect()
    }

    fn read(&mut self) {
        let mut news = Vec::new();
        for (server, file) in &mut self.files {
            let lines = file.lines();
            news.extend(lines.iter().filter_map(|line| Some((server.clone(), Line::parse(line)?))));
        }
        news.sort_by(|(_, a), (_, b)| a.at_ms.total_cmp(&b.at_ms));
        self.pending.extend(news);
    }

    /// Waits for a line from any server, and drops those before it.
    pub fn wait_for(
        &mut self,
        what: &str,
        patience: Duration,
        mut wanted: impl FnMut(&str, &Line) -> bool,
    ) -> Result<(String, Line)> {
        let begun = Instant::now();
        loop {
            self.read();
            while let Some((server, line)) = self.pending.pop_front() {
                if wanted(&server, &line) {
                    return Ok((server, line));
                }
            }
            if begun.elapsed() > patience {
                bail!("timed out after {} s waiting for {what}", patience.as_secs());
            }
            // Other processes write these files, so all we can do is poll.
            std::thread::sleep(POLL_EVERY);
        }
    }
}

impl Followed {
    fn lines(&mut self) -> Vec<String> {
        let mut bytes = Vec::new();
        let read = File::open(&self.path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.offset))?;
            file.read_to_end(&mut bytes)
        });
        if read.is_err() {
            return Vec::new();
        }
        self.offset += bytes.len() as u64;
        self.rest.extend(bytes);
        let complete = self.rest.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        let lines: Vec<u8> = self.rest.drain(..complete).collect();
        String::from_utf8_lossy(&lines).lines().map(str::to_owned).collect()
    }
}

#[cfg(test)]
#[path = "logs_test.rs"]
mod logs_test;
