//! The services that should run, and their processes: durable, for the next guard.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use cohort_base::OnPath as _;
use cohort_store::{DurableFile, DurableFileError};
use parking_lot::Mutex;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::ground::Ground;
use crate::process::{Exit, Watched, user_of};
use crate::service::ServiceSpec;

/// The version of `services.json`.
const VERSION: u32 = 4;

/// An environment variable of every service, unique to one start by one guard.
pub(crate) const INSTANCE: &str = "COHORT_GUARD_INSTANCE";

/// The directory of the app's releases: on one server, an app has one.
pub(crate) const RELEASES: &str = "COHORT_GUARD_RELEASES";

/// The directory of the guard that started a service.
pub(crate) const GROUND: &str = "COHORT_GUARD_GROUND";

/// The content of `services.json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Services {
    /// The boot of the machine that the processes belong to.
    boot_id: String,
    /// Services that should run, by name.
    services: BTreeMap<String, Kept>,
}

impl Services {
    /// The record after this boot: no process survives a reboot.
    fn in_boot(mut self, boot_id: &str) -> Self {
        if self.boot_id != boot_id {
            boot_id.clone_into(&mut self.boot_id);
            for kept in self.services.values_mut() {
                kept.process = None;
                kept.finished = false;
            }
        }
        self
    }
}

/// One service in the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    pub(crate) spec: ServiceSpec,
    pub(crate) exits: u64,
    pub(crate) last_exit: Option<Exit>,
    pub(crate) process: Option<Process>,
    /// A oneshot that has ended well, in this boot.
    pub(crate) finished: bool,
}

impl Kept {
    /// A service that is about to start.
    pub(crate) fn new(spec: ServiceSpec) -> Self {
        Kept { spec, exits: 0, last_exit: None, process: None, finished: false }
    }
}

/// A process of a service: recorded before it starts, completed afterwards.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Process {
    /// The value of [`INSTANCE`] in its environment.
    pub(crate) instance: String,
    /// The directories of the cgroup of all that it started.
    pub(crate) cgroups: Vec<PathBuf>,
    /// `None` until it has started.
    pub(crate) started: Option<Started>,
    /// Whether it has said that it is ready.
    pub(crate) ready: bool,
}

/// What identifies a process within one boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Started {
    pub(crate) pid: i32,
    pub(crate) start_ticks: u64,
}

#[derive(Debug)]
pub(crate) struct Record {
    inner: Mutex<(DurableFile<Services>, Services)>,
    ground: Arc<Ground>,
}

impl Record {
    pub(crate) fn open(folder: &Path, ground: Arc<Ground>) -> Result<Self, DurableFileError> {
        let (file, services) =
            DurableFile::<Services>::open(folder.join("services.json"), VERSION)?;
        let services = services.unwrap_or_default().in_boot(crate::clock::boot_id());
        Ok(Record { inner: Mutex::new((file, services)), ground })
    }

    /// The mark of the guard's directory.
    pub(crate) fn ground(&self) -> &str {
        self.ground.mark()
    }

    /// Changes the record; persisted on return. If it cannot be written, nothing changes.
    fn change(
        &self,
        change: impl FnOnce(&mut BTreeMap<String, Kept>),
    ) -> Result<(), DurableFileError> {
        let (file, current) = &mut *self.inner.lock();
        let mut services = current.clone();
        change(&mut services.services);
        if services == *current {
            return Ok(());
        }
        // Never the record of a guard that took this one's place.
        self.ground.check().on_path("write", file.path()).map_err(DurableFileError::Write)?;
        let saved = file.save(&services);
        match saved {
            Ok(()) => *current = services,
            // A full disk may have room again later: the next change writes the whole record.
            Err(_) => {
                if let Ok((reopened, _)) = DurableFile::open(file.path(), VERSION) {
                    *file = reopened;
                }
            }
        }
        saved
    }

    pub(crate) fn put(&self, kept: Kept) -> Result<(), DurableFileError> {
        self.change(|services| drop(services.insert(kept.spec.name.clone(), kept)))
    }

    pub(crate) fn remove(&self, name: &str) -> Result<(), DurableFileError> {
        self.change(|services| drop(services.remove(name)))
    }

    /// Changes one service, if it is in the record.
    pub(crate) fn update(
        &self,
        name: &str,
        update: impl FnOnce(&mut Kept),
    ) -> Result<(), DurableFileError> {
        self.change(|services| {
            if let Some(kept) = services.get_mut(name) {
                update(kept);
            }
        })
    }

    pub(crate) fn services(&self) -> Vec<Kept> {
        self.inner.lock().1.services.values().cloned().collect()
    }
}

impl Process {
    /// The process of this user, if it still runs; never another one that reused its number.
    pub(crate) fn find(&self, uid: Option<u32>) -> Option<Watched> {
        match self.started {
            Some(Started { pid, start_ticks }) => {
                Watched::started_at(Pid::from_raw(pid)?, start_ticks)
            }
            // The guard was killed after starting it, before recording its number.
            None => {
                let wanted = format!("{INSTANCE}={}", self.instance);
                // Its wrapper is still this process's user for a moment.
                let users = [uid?, crate::trusted_folder::own_user()];
                by_environment(&users, &[&wanted], &[]).pop()
            }
        }
    }
}

/// Most of a process's environment that is read, in bytes. Processes can make it look endless;
/// Cohort's own variables are sorted before most others.
const ENVIRONMENT_BYTES_MAX: u64 = 256 * 1024;

/// The processes of these users that lead their groups and have all these variables, whole or up to
/// a `*` at the end, and none of those; as `NAME=value`.
pub(crate) fn by_environment(users: &[u32], all: &[&str], none: &[&str]) -> Vec<Watched> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid: Option<i32> = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let Some(pid) = pid.and_then(Pid::from_raw) else { continue };
        // Its children inherit the environment, but only the service leads its group. Others can
        // give their processes any variables. (The kernel's own processes have neither, and a group
        // that the library does not expect.)
        if user_of(pid).is_some_and(|user| users.contains(&user))
            && has(&entry.path(), all, none).unwrap_or(false)
            && rustix::process::getpgid(Some(pid)).is_ok_and(|group| group == pid)
        {
            found.extend(Watched::open(pid));
        }
    }
    found
}

fn has(process: &Path, all: &[&str], none: &[&str]) -> std::io::Result<bool> {
    let mut environment = Vec::new();
    let file = std::fs::File::open(process.join("environ"))?;
    file.take(ENVIRONMENT_BYTES_MAX).read_to_end(&mut environment)?;
    let is = |entry: &[u8], text: &str| match text.strip_suffix('*') {
        Some(start) => entry.starts_with(start.as_bytes()),
        None => entry == text.as_bytes(),
    };
    let any = |text: &&str| environment.split(|byte| *byte == 0).any(|entry| is(entry, text));
    Ok(all.iter().all(any) && !none.iter().any(any))
}

#[cfg(test)]
#[path = "state_test.rs"]
mod state_test;
