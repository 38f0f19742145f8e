//! The guard's event log, one line each: when each service was up, and when not.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::process::Exit;
use crate::service::ServiceSpec;

/// The file's name, in the guard's directory.
pub const EVENTS_FILE: &str = "events.log";

/// The file is rotated at this size, in bytes. 1 MiB: some ten thousand events; one old file is
/// kept.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub version: u32,
    /// Boot-time clock, in milliseconds.
    pub boot_ms: u64,
    /// The boot of the machine that `boot_ms` and `pid` belong to.
    pub boot_id: String,
    pub service: String,
    pub key: String,
    /// The service's process, leader of its process group.
    pub pid: u32,
    pub event: EventKind,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<Exit>,
}

/// What happened to a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    Started,
    /// A new guard found it running and took over.
    Adopted,
    /// It exited on its own.
    Exited,
    /// The guard stopped it on request.
    Stopped,
}

#[derive(Debug)]
pub(crate) struct EventLog {
    path: PathBuf,
}

impl EventLog {
    pub(crate) fn new(folder: &Path) -> Self {
        EventLog { path: folder.join(EVENTS_FILE) }
    }

    /// Writes a line. A failure is only logged: services matter more than their history.
    pub(crate) fn write(&self, spec: &ServiceSpec, pid: u32, event: EventKind, exit: Option<Exit>) {
        let event = Event {
            version: 1,
            boot_ms: crate::clock::boot_time_ms(),
            boot_id: crate::clock::boot_id().to_owned(),
            service: spec.name.clone(),
            key: spec.key.clone(),
            pid,
            event,
            exit,
        };
        if let Err(error) = self.try_write(&event) {
            tracing::warn!(path = %self.path.display(), %error, "cannot write an event");
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

#[cfg(test)]
#[path = "events_test.rs"]
mod events_test;
