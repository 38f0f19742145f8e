//! Services as units of systemd, over D-Bus.
//!
//! Not yet tried on a real host: it is tested against a stand-in built from systemd's own
//! introspection data (`tests/systemd/`).

use std::path::PathBuf;
use std::time::Duration;

use async_trait::async_trait;
use cohort_store::DurableFile;
use futures_util::StreamExt as _;
use serde::{Deserialize, Serialize};
use zbus::zvariant::{ObjectPath, OwnedObjectPath};
use zbus::{Connection, proxy};

use crate::service::{
    RunService, ServiceControl, ServiceError, ServiceSpec, ServiceState, ServiceStatus,
};

/// How long systemd may take to answer a question.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How long a unit may take to start: systemd's own default limit.
const START_MAX: Duration = Duration::from_secs(90);

/// What a stop may take beyond the unit's own limit.
const STOP_MARGIN: Duration = Duration::from_secs(5);

const WHO: &str = "systemd";

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
    fn exec_main_status(&self) -> zbus::Result<i32>;
    #[zbus(property(emits_changed_signal = "false"), name = "NRestarts")]
    fn n_restarts(&self) -> zbus::Result<u32>;
}

/// Under which yes a unit was started; written down before it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct UnitRecord {
    key: String,
    release: String,
    /// systemd's name for this run of the unit, once known.
    invocation: Option<Vec<u8>>,
}

/// Starts, stops and watches units.
#[derive(Debug)]
pub struct Systemd {
    connection: Connection,
    folder: PathBuf,
}

/// What a unit does, as systemd says.
struct Seen {
    active: String,
    sub: String,
    invocation: Vec<u8>,
}

impl Seen {
    fn runs(&self) -> bool {
        matches!(self.active.as_str(), "active" | "reloading" | "refreshing")
    }

    fn is_down(&self) -> bool {
        matches!(self.active.as_str(), "inactive" | "failed")
    }
}

impl Systemd {
    /// Connects to the system bus. `folder` is where it is written down what was started.
    ///
    /// # Errors
    /// When there is no bus.
    pub async fn connect(folder: PathBuf) -> Result<Self, ServiceError> {
        let connection = Connection::system().await.map_err(unreachable)?;
        Self::over(connection, folder)
    }

    /// Uses a connection that is there.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn over(connection: Connection, folder: PathBuf) -> Result<Self, ServiceError> {
        std::fs::create_dir_all(&folder).map_err(failed)?;
        Ok(Systemd { connection, folder })
    }

    async fn manager(&self) -> Result<ManagerProxy<'_>, ServiceError> {
        let properties = zbus::proxy::CacheProperties::No;
        let building = ManagerProxy::builder(&self.connection).cache_properties(properties);
        building.build().await.map_err(unreachable)
    }

    fn record(
        &self,
        unit: &str,
    ) -> Result<(DurableFile<UnitRecord>, Option<UnitRecord>), ServiceError> {
        DurableFile::open(self.folder.join(unit)).map_err(failed)
    }

    async fn seen(&self, unit: &str) -> Result<(OwnedObjectPath, Seen), ServiceError> {
        let look = async {
            let path = self.manager().await?.load_unit(unit).await.map_err(failed)?;
            let unit = self.unit(&path).await.map_err(failed)?;
            let seen = Seen {
                active: unit.active_state().await.map_err(failed)?,
                sub: unit.sub_state().await.map_err(failed)?,
                invocation: unit.invocation_id().await.map_err(failed)?,
            };
            Ok((path, seen))
        };
        tokio::time::timeout(ANSWER_MAX, look).await.map_err(unreachable)?
    }

    async fn unit<'a>(&'a self, path: &'a OwnedObjectPath) -> zbus::Result<UnitProxy<'a>> {
        UnitProxy::builder(&self.connection)
            .cache_properties(zbus::proxy::CacheProperties::No)
            .path(path)?
            .build()
            .await
    }

    async fn service<'a>(
        &'a self,
        path: &'a OwnedObjectPath,
    ) -> zbus::Result<UnitServiceProxy<'a>> {
        UnitServiceProxy::builder(&self.connection)
            .cache_properties(zbus::proxy::CacheProperties::No)
            .path(path)?
            .build()
            .await
    }

    /// Starts or stops a unit and waits until that job is over; its result, `done` if it went well.
    async fn job(
        &self,
        unit: &str,
        start: bool,
        at_most: Duration,
    ) -> Result<String, ServiceError> {
        let job = async {
            let manager = self.manager().await?;
            // Signals come only to those who asked; asked before the job, so that none is missed.
            manager.subscribe().await.or_else(already_subscribed).map_err(failed)?;
            let mut removed = manager.receive_job_removed().await.map_err(failed)?;
            let job = if start {
                manager.start_unit(unit, "replace").await
            } else {
                manager.stop_unit(unit, "replace").await
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
        let late = |_| unreachable(format!("{unit}: no result within {} s", at_most.as_secs()));
        tokio::time::timeout(at_most, job).await.map_err(late)?
    }
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

#[expect(clippy::needless_pass_by_value, reason = "given to `map_err`")]
fn unreachable(reason: impl ToString) -> ServiceError {
    ServiceError::Unreachable { what: WHO, reason: reason.to_string() }
}

#[expect(clippy::needless_pass_by_value, reason = "given to `map_err`")]
fn failed(reason: impl ToString) -> ServiceError {
    ServiceError::Failed { what: WHO, reason: reason.to_string() }
}

#[async_trait]
impl ServiceControl for Systemd {
    async fn start(&self, spec: &ServiceSpec) -> Result<(), ServiceError> {
        let RunService::Unit(unit) = &spec.run else {
            return Err(failed("it runs units, no commands"));
        };
        let (mut file, record) = self.record(unit)?;
        let (_, seen) = self.seen(unit).await?;
        let mut wanted =
            UnitRecord { key: spec.key.clone(), release: spec.release.clone(), invocation: None };
        let ours = record.is_some_and(|record| {
            // Without an invocation: we were interrupted after asking for the start.
            record.key == spec.key && record.invocation.is_none_or(|ran| ran == seen.invocation)
        });
        if !(ours && seen.runs()) {
            if !seen.is_down() {
                // What ran before; written down only then, so that it is never taken for ours.
                self.job(unit, false, START_MAX).await?;
            }
            file.save(&wanted).map_err(failed)?;
            let result = self.job(unit, true, START_MAX).await?;
            if result != "done" {
                return Err(ServiceError::Start(format!("{unit}: the job ended with `{result}`")));
            }
        }
        let (_, seen) = self.seen(unit).await?;
        wanted.invocation = Some(seen.invocation);
        file.save(&wanted).map_err(failed)
    }

    async fn stop(&self, name: &str, at_most: Duration) -> Result<(), ServiceError> {
        let (_, seen) = self.seen(name).await?;
        if !seen.is_down() {
            let result = self.job(name, false, at_most + STOP_MARGIN).await?;
            if result != "done" {
                return Err(failed(format!("{name}: the stop ended with `{result}`")));
            }
        }
        match std::fs::remove_file(self.folder.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }

    async fn status(&self, name: &str) -> Result<ServiceStatus, ServiceError> {
        let (_, record) = self.record(name)?;
        let (path, seen) = self.seen(name).await?;
        let service = self.service(&path).await.map_err(failed)?;
        let restarts = u64::from(service.n_restarts().await.map_err(failed)?);
        let state = if seen.runs() {
            ServiceState::Running { pid: service.main_pid().await.map_err(failed)? }
        } else if seen.is_down() {
            ServiceState::Stopped
        } else {
            ServiceState::Waiting
        };
        let ended = seen.active == "failed" || seen.sub == "auto-restart" || restarts > 0;
        let last_exit = if ended {
            let status = service.exec_main_status().await.map_err(failed)?;
            Some(format!("{}/{}, main status {status}", seen.active, seen.sub))
        } else {
            None
        };
        Ok(ServiceStatus {
            key: record.as_ref().map(|record| record.key.clone()),
            release: record.map(|record| record.release),
            state,
            exits: restarts + u64::from(seen.active == "failed"),
            last_exit,
            // The journal has it; reading it is another program's trade.
            output: String::new(),
        })
    }
}
