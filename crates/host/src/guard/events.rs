//! What the guard did, one line each: the record of when a service was there and when not.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The file's name in the guard's folder.
pub const EVENTS_FILE: &str = "events.log";

/// Where a full file is turned over. 1 MiB is some ten thousand events; one old file is kept.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// One line of the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Boot-time clock, in milliseconds.
    pub boot_ms: u64,
    /// Of which start of the machine.
    pub boot_id: String,
    /// Which service.
    pub service: String,
    /// Under which yes.
    pub key: String,
    /// Its process.
    pub pid: u32,
    /// What happened.
    pub event: EventKind,
    /// How it ended, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<String>,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    /// The guard started it.
    Started,
    /// A new guard found it running and watches it.
    Adopted,
    /// It ended by itself.
    Exited,
    /// It was stopped, as asked.
    Stopped,
}

#[derive(Debug)]
pub(crate) struct EventLog {
    path: PathBuf,
    boot_id: String,
}

impl EventLog {
    pub(crate) fn new(folder: &Path) -> Self {
        EventLog { path: folder.join(EVENTS_FILE), boot_id: crate::clock::boot_id() }
    }

    /// Writes a line. That it cannot be written is logged: services matter more than their record.
    pub(crate) fn write(
        &self,
        service: &str,
        key: &str,
        pid: u32,
        event: EventKind,
        exit: Option<String>,
    ) {
        let event = Event {
            boot_ms: crate::clock::boot_time_ms(),
            boot_id: self.boot_id.clone(),
            service: service.to_owned(),
            key: key.to_owned(),
            pid,
            event,
            exit,
        };
        if let Err(error) = self.try_write(&event) {
            tracing::warn!(path = %self.path.display(), %error, "an event could not be written");
        }
    }

    fn try_write(&self, event: &Event) -> std::io::Result<()> {
        let mut line = serde_json::to_vec(event)?;
        line.push(b'\n');
        let mut file = self.open()?;
        if file.metadata()?.len() > FILE_BYTES_MAX {
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            file = self.open()?;
        }
        file.write_all(&line)
    }

    fn open(&self) -> std::io::Result<File> {
        OpenOptions::new().create(true).append(true).open(&self.path)
    }
}
