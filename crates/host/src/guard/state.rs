//! What is to run and which processes do: durable, so that the next guard goes on.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use cohort_store::{DurableFile, DurableFileError};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::process::{Watched, start_ticks};
use crate::service::ServiceSpec;

/// In the environment of every service: which start of which guard this is.
pub(crate) const INSTANCE: &str = "COHORT_GUARD_INSTANCE";

/// The record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Services {
    /// Of which start of the machine the processes are.
    pub(crate) boot_id: String,
    /// By name; all of these are to run.
    pub(crate) services: BTreeMap<String, Kept>,
}

/// One service in the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    pub(crate) spec: ServiceSpec,
    /// How often it ended by itself.
    pub(crate) exits: u64,
    pub(crate) last_exit: Option<String>,
    pub(crate) process: Option<Process>,
}

/// A process of ours: written down before it is started, and completed after.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Process {
    /// In its environment, see [`INSTANCE`].
    pub(crate) instance: String,
    /// Number and start time, once known.
    pub(crate) started: Option<Started>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Started {
    pub(crate) pid: i32,
    pub(crate) start_ticks: u64,
}

#[derive(Debug)]
pub(crate) struct Record {
    inner: Mutex<(DurableFile<Services>, Services)>,
}

impl Record {
    pub(crate) fn open(folder: &Path) -> Result<Self, DurableFileError> {
        let (file, services) = DurableFile::open(folder.join("services.json"))?;
        let mut services: Services = services.unwrap_or_default();
        let boot_id = crate::clock::boot_id();
        if services.boot_id != boot_id {
            services.boot_id = boot_id;
            for kept in services.services.values_mut() {
                kept.process = None;
            }
        }
        Ok(Record { inner: Mutex::new((file, services)) })
    }

    /// Changes the record; durable when it returns. Nothing is changed when it cannot be written.
    pub(crate) fn change(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, Kept>),
    ) -> Result<(), DurableFileError> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let mut services = inner.1.clone();
        change(&mut services.services);
        if services == inner.1 {
            return Ok(());
        }
        let saved = inner.0.save(&services);
        match saved {
            Ok(()) => inner.1 = services,
            // A disk that was full may have room again: the next change is tried anew, as a whole.
            Err(_) => {
                if let Ok((file, _)) = DurableFile::open(inner.0.path()) {
                    inner.0 = file;
                }
            }
        }
        saved
    }

    pub(crate) fn services(&self) -> BTreeMap<String, Kept> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).1.services.clone()
    }
}

impl Process {
    /// The process, if it still runs: verified, so that a number given anew is never taken for it.
    pub(crate) fn find(&self) -> Option<Watched> {
        match self.started {
            Some(Started { pid, start_ticks: ticks }) => {
                let pid = Pid::from_raw(pid)?;
                let watched = Watched::open(pid).ok()?;
                (start_ticks(pid) == Some(ticks)).then_some(watched)
            }
            // The guard was killed between starting it and writing down its number.
            None => self.find_by_environment(),
        }
    }

    fn find_by_environment(&self) -> Option<Watched> {
        let wanted = format!("{INSTANCE}={}", self.instance);
        for entry in std::fs::read_dir("/proc").ok()?.flatten() {
            let pid: Option<i32> = entry.file_name().to_str().and_then(|name| name.parse().ok());
            let Some(pid) = pid.and_then(Pid::from_raw) else { continue };
            let Ok(environment) = std::fs::read(entry.path().join("environ")) else { continue };
            if !environment.split(|byte| *byte == 0).any(|entry| entry == wanted.as_bytes()) {
                continue;
            }
            // Its children inherit the environment; the service itself leads the group.
            if rustix::process::getpgid(Some(pid)).is_ok_and(|group| group == pid) {
                return Watched::open(pid).ok();
            }
        }
        None
    }
}

#[cfg(test)]
#[path = "state_test.rs"]
mod state_test;
