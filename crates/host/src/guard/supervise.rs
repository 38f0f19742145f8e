//! One service: started, watched, restarted when it exits, stopped on request.

use std::sync::Arc;
use std::time::Duration;

use cohort_base::chain;
use cohort_base::retry::{PROGRAM, Pauses};
use parking_lot::Mutex;
use rustix::process::Signal;
use tokio::process::Command;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::events::{EventKind, EventLog};
use super::leftover::releases;
use super::log::ServiceLog;
use super::state::{GROUND, INSTANCE, Kept, Process, RELEASES, Record, Started};
use crate::clock::boot_time;
use crate::process::{Exit, GroupChild, Watched, is_the_programs_fault, start_ticks};
use crate::service::{RunService, ServiceCommand, ServiceSpec, ServiceState, ServiceStatus};

/// A service that stayed up this long is not in a crash loop.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// What the services of one guard share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) record: Record,
    pub(crate) events: EventLog,
}

/// One service's files and name, independent of what runs.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    pub(crate) shared: Arc<Shared>,
    pub(crate) log: Arc<ServiceLog>,
    status: Arc<Mutex<ServiceStatus>>,
}

/// A service under supervision.
#[derive(Debug)]
pub(crate) struct Supervised {
    pub(crate) key: String,
    home: Home,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

/// Why a service was not started, for people.
#[derive(Debug)]
pub(crate) enum CannotSpawn {
    Program(String),
    Machine(String),
}

/// A process of the service: our child, or one that an earlier guard started.
enum Running {
    Child(GroupChild),
    Found(Watched),
}

impl Running {
    fn watched(&self) -> &Watched {
        match self {
            Running::Child(child) => child.watched(),
            Running::Found(watched) => watched,
        }
    }

    fn pid(&self) -> u32 {
        self.watched().pid().as_raw_nonzero().get().unsigned_abs()
    }

    /// Waits until it exits, and ends the rest of its group.
    async fn exit(self) -> Exit {
        match self {
            Running::Child(child) => child.reap().await.unwrap_or(Exit::Unknown),
            Running::Found(watched) => {
                watched.ended().await;
                watched.signal_group(Signal::KILL);
                Exit::Unknown
            }
        }
    }
}

/// When to restart a service that exited: after pauses that grow while it does not stay up.
struct Restarts(Pauses);

impl Restarts {
    fn pause_after(&mut self, ran: Duration) -> Duration {
        if ran >= STABLE_AFTER {
            self.0.reset();
        }
        self.0.next_pause()
    }
}

impl Home {
    pub(crate) fn new(shared: Arc<Shared>, log: Arc<ServiceLog>) -> Self {
        Home { shared, log, status: Arc::default() }
    }

    pub(crate) fn status(&self) -> ServiceStatus {
        ServiceStatus { output: self.log.tail(), ..self.status.lock().clone() }
    }

    /// Starts a process: records its mark first, its number afterwards.
    fn spawn(&self, spec: &ServiceSpec) -> Result<Running, CannotSpawn> {
        let RunService::Command(command) = &spec.run else {
            return Err(CannotSpawn::Machine("the guard runs commands, not units".to_owned()));
        };
        let instance = format!("{}.{}.{}", spec.name, std::process::id(), boot_time().as_nanos());
        let process = Process { instance, started: None };
        self.shared
            .record
            .update(&spec.name, |kept| kept.process = Some(process.clone()))
            .map_err(|error| CannotSpawn::Machine(chain(&error)))?;
        let child = self.spawn_command(command, &process.instance).map_err(|error| {
            let reason = format!("{}: {error}", command.program.display());
            if is_the_programs_fault(&error) {
                CannotSpawn::Program(reason)
            } else {
                CannotSpawn::Machine(reason)
            }
        })?;
        let running = Running::Child(child);
        self.shared.events.write(spec, running.pid(), EventKind::Started, None);
        self.started(spec, process, running.watched());
        Ok(running)
    }

    fn spawn_command(
        &self,
        command: &ServiceCommand,
        instance: &str,
    ) -> std::io::Result<GroupChild> {
        let writer = self.log.writer()?;
        let mut process = Command::new(&command.program);
        process
            .args(&command.args)
            .env_clear()
            .envs(&command.env)
            .env(INSTANCE, instance)
            .env(GROUND, self.shared.record.ground())
            .env(RELEASES, releases(command).unwrap_or_default())
            .current_dir(&command.folder)
            .stdout(writer.try_clone()?)
            .stderr(writer);
        if let Some(run_as) = command.run_as {
            run_as.apply(&mut process);
        }
        GroupChild::spawn(&mut process)
    }

    /// Records a process's number. If that fails, the service runs anyway: the next guard finds it
    /// by its environment.
    fn started(&self, spec: &ServiceSpec, process: Process, watched: &Watched) {
        let Some(start_ticks) = start_ticks(watched.pid()) else { return };
        let started = Some(Started { pid: watched.pid().as_raw_nonzero().get(), start_ticks });
        let process = Process { started, ..process };
        let updated = self.shared.record.update(&spec.name, |kept| kept.process = Some(process));
        if let Err(error) = updated {
            tracing::error!(reason = chain(&error), "cannot record the process of a service");
        }
    }
}

impl Supervised {
    /// Starts the service for the first time; the result says whether its program could be run.
    pub(crate) fn start(home: &Home, spec: ServiceSpec) -> Result<Self, CannotSpawn> {
        let running = home.spawn(&spec)?;
        let kept = Kept { spec, exits: 0, last_exit: None, process: None };
        Ok(Self::watch(home, kept, Some(running)))
    }

    /// Takes over from an earlier guard: adopts its process, or starts the service again.
    pub(crate) fn take_over(home: &Home, mut kept: Kept) -> Self {
        let process = kept.process.take();
        let found = process.as_ref().and_then(Process::find).map(Running::Found);
        if let (Some(running), Some(process)) = (&found, process) {
            home.shared.events.write(&kept.spec, running.pid(), EventKind::Adopted, None);
            home.started(&kept.spec, process, running.watched());
        }
        Self::watch(home, kept, found)
    }

    fn watch(home: &Home, kept: Kept, running: Option<Running>) -> Self {
        let Kept { spec, exits, last_exit, process: _ } = kept;
        let state = match &running {
            Some(running) => ServiceState::Running { pid: running.pid() },
            None => ServiceState::Waiting,
        };
        let key = spec.key.clone();
        *home.status.lock() = ServiceStatus {
            release: Some(spec.release.clone()),
            state,
            exits,
            last_exit,
            output: String::new(),
        };
        let (home, stop) = (home.clone(), CancellationToken::new());
        let keeper = Keeper { home: home.clone(), spec, stop: stop.clone() };
        let task = tokio::spawn(keeper.keep(running));
        Supervised { key, home, stop, task }
    }

    /// Stops the service and all its processes.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(key = self.key, %error, "supervision of a service panicked");
        }
        *self.home.status.lock() = ServiceStatus::default();
    }
}

/// Keeps one service running until it receives a stop request.
struct Keeper {
    home: Home,
    spec: ServiceSpec,
    stop: CancellationToken,
}

impl Keeper {
    async fn keep(self, mut running: Option<Running>) {
        let mut restarts = Restarts(PROGRAM.pauses());
        loop {
            let started = match running.take() {
                Some(running) => Ok(running),
                None if self.stop.is_cancelled() => return,
                None => self.home.spawn(&self.spec),
            };
            let ran = match started {
                Ok(running) => {
                    self.home.status.lock().state = ServiceState::Running { pid: running.pid() };
                    let since = Instant::now();
                    tokio::select! {
                        () = running.watched().ended() => {}
                        () = self.stop.cancelled() => return self.end(running).await,
                    }
                    let pid = running.pid();
                    self.ended_by_itself(pid, running.exit().await);
                    since.elapsed()
                }
                Err(CannotSpawn::Program(reason) | CannotSpawn::Machine(reason)) => {
                    tracing::warn!(service = self.spec.name, reason, "cannot restart service");
                    self.home.status.lock().last_exit = Some(Exit::NotStarted { reason });
                    Duration::ZERO
                }
            };
            tokio::select! {
                () = tokio::time::sleep(restarts.pause_after(ran)) => {}
                () = self.stop.cancelled() => return,
            }
        }
    }

    async fn end(&self, running: Running) {
        let RunService::Command(command) = &self.spec.run else { return };
        let grace = Duration::from_millis(command.stop_timeout_ms);
        let pid = running.pid();
        let service = &self.spec.name;
        if running.watched().stop_group(command.stop_signal.into(), grace).await {
            tracing::warn!(service, pid, "killed service: it did not stop in time");
        }
        let exit = running.exit().await;
        self.home.shared.events.write(&self.spec, pid, EventKind::Stopped, Some(exit));
    }

    fn ended_by_itself(&self, pid: u32, exit: Exit) {
        let Keeper { home, spec, .. } = self;
        tracing::warn!(service = spec.name, pid, %exit, "service exited on its own");
        home.shared.events.write(spec, pid, EventKind::Exited, Some(exit.clone()));
        let exits = {
            let mut status = home.status.lock();
            status.state = ServiceState::Waiting;
            status.exits += 1;
            status.last_exit = Some(exit.clone());
            status.exits
        };
        let updated = home.shared.record.update(&spec.name, |kept| {
            kept.process = None;
            kept.exits = exits;
            kept.last_exit = Some(exit);
        });
        if let Err(error) = updated {
            tracing::error!(reason = chain(&error), "cannot record the end of a service");
        }
    }
}

#[cfg(test)]
#[path = "supervise_test.rs"]
mod supervise_test;
