//! Services as systemd units, over D-Bus.
//!
//! Not yet tried on a real host: tested against a stand-in built from systemd's own introspection
//! data (`tests/systemd/`).

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use cohort_base::{Cause, OnPath as _, durable};
use cohort_store::DurableFile;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use zbus::proxy::{Builder, CacheProperties, Defaults};
use zbus::zvariant::{ObjectPath, OwnedObjectPath};
use zbus::{Connection, Proxy, proxy};

use crate::process::Exit;
use crate::service::{
    RunService, ServiceControl, ServiceError, ServiceSpec, ServiceState, ServiceStatus,
};

/// Longest wait for systemd's response to a query.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How long a unit may take to start: systemd's own default.
const START_MAX: Duration = Duration::from_secs(90);

/// Extra time for a stop, beyond the unit's own limit.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// The result of a successful job.
const JOB_DONE: &str = "done";

/// `ExecMainCode` of a main process that was not killed.
const CLD_EXITED: i32 = 1;

#[proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1",
    gen_blocking = false
)]
trait Manager {
    fn subscribe(&self) -> zbus::Result<()>;
    fn load_unit(&self, name: &str) -> zbus::Result<OwnedObjectPath>;
    fn start_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    fn stop_unit(&self, name: &str, mode: &str) -> zbus::Result<OwnedObjectPath>;
    #[zbus(signal)]
    fn job_removed(
        &self,
        id: u32,
        job: ObjectPath<'_>,
        unit: String,
        result: String,
    ) -> zbus::Result<()>;
}

#[proxy(
    interface = "org.freedesktop.systemd1.Unit",
    default_service = "org.freedesktop.systemd1",
    gen_blocking = false
)]
trait Unit {
    #[zbus(property(emits_changed_signal = "false"))]
    fn active_state(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn sub_state(&self) -> zbus::Result<String>;
    #[zbus(property(emits_changed_signal = "false"), name = "InvocationID")]
    fn invocation_id(&self) -> zbus::Result<Vec<u8>>;
}

#[proxy(
    interface = "org.freedesktop.systemd1.Service",
    default_service = "org.freedesktop.systemd1",
    gen_blocking = false
)]
trait UnitService {
    #[zbus(property(emits_changed_signal = "false"), name = "MainPID")]
    fn main_pid(&self) -> zbus::Result<u32>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn exec_main_code(&self) -> zbus::Result<i32>;
    #[zbus(property(emits_changed_signal = "false"))]
    fn exec_main_status(&self) -> zbus::Result<i32>;
    #[zbus(property(emits_changed_signal = "false"), name = "NRestarts")]
    fn n_restarts(&self) -> zbus::Result<u32>;
}

/// The version of [`UnitRecord`].
const RECORD_VERSION: u32 = 1;

/// The key that a unit was started under; written before the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnitRecord {
    key: String,
    release: String,
    /// systemd's invocation id of that run; `None` until the start has succeeded.
    invocation: Option<Vec<u8>>,
}

/// Starts, stops and watches units.
#[derive(Debug)]
pub struct Systemd {
    connection: Connection,
    folder: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Activity {
    Up,
    /// Exited and waiting for its restart, or about to be up or down.
    Changing,
    Down,
    Failed,
}

impl Activity {
    fn of(active_state: &str) -> Self {
        match active_state {
            "active" | "reloading" | "refreshing" => Activity::Up,
            "inactive" => Activity::Down,
            "failed" => Activity::Failed,
            _ => Activity::Changing,
        }
    }

    fn is_down(self) -> bool {
        matches!(self, Activity::Down | Activity::Failed)
    }
}

/// A unit's state at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    activity: Activity,
    /// It exited on its own, and systemd is about to restart it.
    restarting: bool,
    invocation: Vec<u8>,
}

impl Seen {
    /// Whether it is running because it was started under `key`, and was not restarted outside
    /// Cohort.
    fn runs_under(&self, key: &str, record: Option<&UnitRecord>) -> bool {
        let ours = record.is_some_and(|record| {
            // Without an invocation id, we were interrupted after requesting the start.
            let this_run = record.invocation.as_ref().is_none_or(|ran| *ran == self.invocation);
            record.key == key && this_run
        });
        ours && self.activity == Activity::Up
    }
}

impl Systemd {
    /// Connects to the system bus. `folder` is for the records of what was started.
    ///
    /// # Errors
    /// If there is no bus, or the directory cannot be created.
    pub async fn connect(folder: PathBuf) -> Result<Self, ServiceError> {
        Self::over(Connection::system().await.map_err(unreachable)?, folder)
    }

    /// Uses an existing connection.
    ///
    /// # Errors
    /// If the directory cannot be created.
    pub fn over(connection: Connection, folder: PathBuf) -> Result<Self, ServiceError> {
        durable::private_folder(&folder).on_path("create", &folder).map_err(failed)?;
        Ok(Systemd { connection, folder })
    }

    /// A proxy that caches nothing. `path` is for interfaces without a default one.
    async fn proxy<'a, P>(&self, path: Option<&'a OwnedObjectPath>) -> Result<P, ServiceError>
    where
        P: Defaults + From<Proxy<'a>>,
    {
        let builder = Builder::new(&self.connection).cache_properties(CacheProperties::No);
        let builder = match path {
            Some(path) => builder.path(path).map_err(failed)?,
            None => builder,
        };
        builder.build().await.map_err(unreachable)
    }

    fn record(
        &self,
        unit: &str,
    ) -> Result<(DurableFile<UnitRecord>, Option<UnitRecord>), ServiceError> {
        DurableFile::open(self.folder.join(unit), RECORD_VERSION).map_err(failed)
    }

    async fn seen(&self, unit: &str) -> Result<(OwnedObjectPath, Seen), ServiceError> {
        let look = async {
            let manager: ManagerProxy<'_> = self.proxy(None).await?;
            let path = manager.load_unit(unit).await.map_err(failed)?;
            let unit: UnitProxy<'_> = self.proxy(Some(&path)).await?;
            let seen = Seen {
                activity: Activity::of(&unit.active_state().await.map_err(failed)?),
                restarting: unit.sub_state().await.map_err(failed)? == "auto-restart",
                invocation: unit.invocation_id().await.map_err(failed)?,
            };
            Ok((path, seen))
        };
        tokio::time::timeout(ANSWER_MAX, look).await.map_err(unreachable)?
    }

    /// Starts or stops a unit and waits until that job has ended. Returns the job's result.
    async fn job(&self, unit: &str, job: Job, at_most: Duration) -> Result<String, ServiceError> {
        let work = async {
            let manager: ManagerProxy<'_> = self.proxy(None).await?;
            // Signals only go to subscribers; subscribed before the job, so that none is missed.
            manager.subscribe().await.or_else(already_subscribed).map_err(failed)?;
            let mut removed = manager.receive_job_removed().await.map_err(failed)?;
            let job = match job {
                Job::Start => manager.start_unit(unit, "replace").await,
                Job::Stop => manager.stop_unit(unit, "replace").await,
            };
            let job = job.map_err(failed)?;
            while let Some(signal) = removed.next().await {
                let over = signal.args().map_err(failed)?;
                if over.job == job.as_ref() {
                    return Ok(over.result);
                }
            }
            Err(unreachable("the bus was closed"))
        };
        let late = |_| failed(format!("{unit}: no result within {} s", at_most.as_secs()));
        tokio::time::timeout(at_most, work).await.map_err(late)?
    }
}

#[derive(Debug, Clone, Copy)]
enum Job {
    Start,
    Stop,
}

fn already_subscribed(error: zbus::Error) -> zbus::Result<()> {
    match &error {
        zbus::Error::MethodError(name, ..)
            if name.as_str() == "org.freedesktop.systemd1.AlreadySubscribed" =>
        {
            Ok(())
        }
        _ => Err(error),
    }
}

fn unreachable(source: impl Into<Cause>) -> ServiceError {
    ServiceError::Unreachable { manager: "systemd", source: source.into() }
}

fn failed(source: impl Into<Cause>) -> ServiceError {
    ServiceError::Failed { manager: "systemd", source: source.into() }
}

#[async_trait]
impl ServiceControl for Systemd {
    async fn start(&self, spec: &ServiceSpec) -> Result<(), ServiceError> {
        if spec.run != RunService::Unit {
            return Err(failed("it runs units, not commands"));
        }
        let unit = &spec.name;
        let (mut file, record) = self.record(unit)?;
        let (_, seen) = self.seen(unit).await?;
        let (key, release) = (spec.key.clone(), spec.release.clone());
        let mut started = UnitRecord { key, release, invocation: None };
        if !seen.runs_under(&spec.key, record.as_ref()) {
            if !seen.activity.is_down() {
                // Whatever its result, the start below replaces it. The record is written
                // afterwards, so that what ran before is never mistaken for ours.
                self.job(unit, Job::Stop, START_MAX).await?;
            }
            file.save(&started).map_err(failed)?;
            let result = self.job(unit, Job::Start, START_MAX).await?;
            if result != JOB_DONE {
                let reason = format!("{unit}: start job ended with `{result}`");
                return Err(ServiceError::Start { reason });
            }
        }
        let (_, seen) = self.seen(unit).await?;
        started.invocation = Some(seen.invocation);
        file.save(&started).map_err(failed)
    }

    async fn stop(&self, name: &str, at_most: Duration) -> Result<(), ServiceError> {
        let (_, seen) = self.seen(name).await?;
        if !seen.activity.is_down() {
            let result = self.job(name, Job::Stop, at_most + STOP_MARGIN).await?;
            if result != JOB_DONE {
                return Err(failed(format!("{name}: stop job ended with `{result}`")));
            }
        }
        let record = self.folder.join(name);
        match std::fs::remove_file(&record) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            removed => removed.on_path("remove", &record).map_err(failed),
        }
    }

    async fn status(&self, name: &str) -> Result<ServiceStatus, ServiceError> {
        let (_, record) = self.record(name)?;
        let (path, seen) = self.seen(name).await?;
        let service: UnitServiceProxy<'_> = self.proxy(Some(&path)).await?;
        let restarts = u64::from(service.n_restarts().await.map_err(failed)?);
        let state = match seen.activity {
            Activity::Up => {
                ServiceState::Running { pid: service.main_pid().await.map_err(failed)? }
            }
            Activity::Changing => ServiceState::Waiting,
            Activity::Down | Activity::Failed => ServiceState::Stopped,
        };
        let unit_failed = seen.activity == Activity::Failed;
        let last_exit = if unit_failed || seen.restarting || restarts > 0 {
            let status = service.exec_main_status().await.map_err(failed)?;
            Some(match service.exec_main_code().await.map_err(failed)? {
                CLD_EXITED => Exit::Status(status),
                _ => Exit::Signal(status),
            })
        } else {
            None
        };
        Ok(ServiceStatus {
            release: record.map(|record| record.release),
            state,
            exits: restarts + u64::from(unit_failed),
            last_exit,
            // The journal has it, and is not read here.
            ..ServiceStatus::default()
        })
    }
}

#[cfg(test)]
#[path = "systemd_test.rs"]
mod systemd_test;
