//! What a service or a hook on a server wrote.

use cohort_core::ids::AppId;
use serde::{Deserialize, Serialize};

/// `POST` a [`LogRequest`], operators: what a service or hook on this server wrote. The response is
/// a [`LogAnswer`].
pub const LOG: &str = "/v1/log";
/// Most lines that are asked for from the end.
pub const LOG_LINES_MAX: u32 = 5_000;
/// The longest that an answer waits for a line, in milliseconds.
pub const LOG_WAIT_MS_MAX: u64 = 20_000;

/// Asks for lines.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogRequest {
    /// `None`: the server's only app.
    pub app: Option<AppId>,
    /// The last run of this hook, instead of the service.
    pub hook: Option<String>,
    pub from: LogFrom,
    /// How long to wait for a line if there is none, at most [`LOG_WAIT_MS_MAX`].
    pub wait_ms: u64,
}

/// Where to start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case", deny_unknown_fields)]
pub enum LogFrom {
    /// With the oldest line that there is,
    Start,
    /// or so many lines before the end, at most [`LOG_LINES_MAX`],
    Last { lines: u32 },
    /// or where an earlier answer ended.
    After { place: LogPlace },
}

/// A place in a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogPlace {
    /// Tells the file from others that the log has had.
    pub file: u64,
    /// In bytes.
    pub offset: u64,
}

/// Lines of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogAnswer {
    pub app: AppId,
    /// Whole lines, oldest first. Those of a service begin with the time at which they arrived, in
    /// UTC, as RFC 3339 with milliseconds.
    pub output: Vec<String>,
    /// What was asked for is gone: these are the oldest lines that there are.
    pub gap: bool,
    /// Whether more lines are there already.
    pub more: bool,
    /// Where to go on; `None`: nothing was written yet.
    pub end: Option<LogPlace>,
}

/// The text after the time of the line with which a log notes that a process was started.
pub const LOG_STARTED: &str = "cohort: started process ";
