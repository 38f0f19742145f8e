//! One service: started, watched, started again when it ends, stopped when asked.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use tokio::process::Command;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::events::{EventKind, EventLog};
use super::log::ServiceLog;
use super::state::{INSTANCE, Process, Record, Started};
use crate::process::{GroupChild, Watched, is_the_programs_fault, signal_by_name, start_ticks};
use crate::service::{RunService, ServiceCommand, ServiceSpec, ServiceState, ServiceStatus};

/// The first wait before a service that ended is started again; doubled each time.
const BACK_OFF_FIRST: Duration = Duration::from_millis(100);

/// The longest wait. 30 s: a service that comes back once its database does is soon there.
const BACK_OFF_MAX: Duration = Duration::from_secs(30);

/// Whoever ran this long is no longer in a loop of crashes.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// What the services of one guard share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) record: Record,
    pub(crate) events: EventLog,
}

/// A service under supervision.
#[derive(Debug)]
pub(crate) struct Supervised {
    pub(crate) spec: ServiceSpec,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
    status: Arc<Mutex<ServiceStatus>>,
    log: Arc<ServiceLog>,
}

/// Why a service was not started.
#[derive(Debug)]
pub(crate) enum CannotSpawn {
    /// Its program cannot be run.
    Program(String),
    /// This machine is to blame.
    Here(String),
}

/// A process of the service: our child, or one that an earlier guard left.
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

    /// How it ended, in words, once it has; the rest of its group ends with it.
    async fn exit(self) -> String {
        match self {
            Running::Child(child) => match child.reap().await {
                Ok(status) => in_words(status),
                Err(error) => format!("ended, and its status cannot be read: {error}"),
            },
            Running::Found(watched) => {
                watched.ended().await;
                watched.signal_group(Signal::KILL);
                "ended; how is unknown, because an earlier guard had started it".to_owned()
            }
        }
    }
}

fn in_words(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

impl Supervised {
    /// Starts the service for the first time; the answer says whether its program could be run.
    pub(crate) fn start(
        shared: &Arc<Shared>,
        spec: ServiceSpec,
        log: Arc<ServiceLog>,
    ) -> Result<Self, CannotSpawn> {
        let running = spawn(shared, &spec, &log)?;
        Ok(Self::watch(shared, spec, log, Some(running), (0, None)))
    }

    /// Takes over what an earlier guard ran: adopts its process, or starts it again.
    pub(crate) fn take_over(
        shared: &Arc<Shared>,
        spec: ServiceSpec,
        log: Arc<ServiceLog>,
        process: Option<&Process>,
        before: (u64, Option<String>),
    ) -> Self {
        let found = process.and_then(Process::find).map(Running::Found);
        if let (Some(running), Some(process)) = (&found, process) {
            shared.events.write(&spec.name, &spec.key, running.pid(), EventKind::Adopted, None);
            write_down(shared, &spec.name, &process.instance, running.watched());
        }
        Self::watch(shared, spec, log, found, before)
    }

    fn watch(
        shared: &Arc<Shared>,
        spec: ServiceSpec,
        log: Arc<ServiceLog>,
        running: Option<Running>,
        (exits, last_exit): (u64, Option<String>),
    ) -> Self {
        let status = Arc::new(Mutex::new(ServiceStatus {
            key: Some(spec.key.clone()),
            release: Some(spec.release.clone()),
            state: running
                .as_ref()
                .map_or(ServiceState::Waiting, |r| ServiceState::Running { pid: r.pid() }),
            exits,
            last_exit,
            output: String::new(),
        }));
        let stop = CancellationToken::new();
        let keeper = Keeper {
            shared: Arc::clone(shared),
            spec: spec.clone(),
            log: Arc::clone(&log),
            status: Arc::clone(&status),
            stop: stop.clone(),
        };
        let task = tokio::spawn(keeper.keep(running));
        Supervised { spec, stop, task, status, log }
    }

    /// What it does now.
    pub(crate) fn status(&self) -> ServiceStatus {
        let mut status = lock(&self.status).clone();
        status.output = self.log.tail();
        status
    }

    /// Stops it and all its processes.
    pub(crate) async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::error!(service = %self.spec.name, %error, "the keeper of a service failed");
        }
    }
}

fn lock(status: &Mutex<ServiceStatus>) -> std::sync::MutexGuard<'_, ServiceStatus> {
    status.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Keeper {
    shared: Arc<Shared>,
    spec: ServiceSpec,
    log: Arc<ServiceLog>,
    status: Arc<Mutex<ServiceStatus>>,
    stop: CancellationToken,
}

impl Keeper {
    async fn keep(self, mut running: Option<Running>) {
        let mut back_off = BACK_OFF_FIRST;
        loop {
            if let Some(running) = running.take() {
                lock(&self.status).state = ServiceState::Running { pid: running.pid() };
                let since = Instant::now();
                tokio::select! {
                    () = running.watched().ended() => {}
                    () = self.stop.cancelled() => return self.end(running).await,
                }
                let pid = running.pid();
                self.ended_by_itself(pid, running.exit().await);
                if since.elapsed() >= STABLE_AFTER {
                    back_off = BACK_OFF_FIRST;
                }
                tokio::select! {
                    () = tokio::time::sleep(back_off) => {}
                    () = self.stop.cancelled() => return,
                }
                back_off = (back_off * 2).min(BACK_OFF_MAX);
            }
            if self.stop.is_cancelled() {
                return;
            }
            match spawn(&self.shared, &self.spec, &self.log) {
                Ok(started) => running = Some(started),
                Err(CannotSpawn::Program(reason) | CannotSpawn::Here(reason)) => {
                    tracing::warn!(service = %self.spec.name, reason, "a service cannot be started");
                    lock(&self.status).last_exit = Some(reason);
                    tokio::select! {
                        () = tokio::time::sleep(back_off) => {}
                        () = self.stop.cancelled() => return,
                    }
                    back_off = (back_off * 2).min(BACK_OFF_MAX);
                }
            }
        }
    }

    async fn end(&self, running: Running) {
        let RunService::Command(command) = &self.spec.run else { return };
        let signal = signal_by_name(&command.stop_signal).unwrap_or(Signal::TERM);
        let grace = Duration::from_millis(command.stop_timeout_ms);
        let pid = running.pid();
        let killed = running.watched().stop_group(signal, grace).await;
        let mut exit = running.exit().await;
        if killed {
            exit.push_str(", killed because it did not stop in time");
        }
        let (name, key) = (&self.spec.name, &self.spec.key);
        self.shared.events.write(name, key, pid, EventKind::Stopped, Some(exit));
    }

    fn ended_by_itself(&self, pid: u32, exit: String) {
        tracing::warn!(service = %self.spec.name, pid, exit, "a service ended by itself");
        let (name, key) = (&self.spec.name, &self.spec.key);
        self.shared.events.write(name, key, pid, EventKind::Exited, Some(exit.clone()));
        let mut status = lock(&self.status);
        status.state = ServiceState::Waiting;
        status.exits += 1;
        status.last_exit = Some(exit);
        let (exits, last_exit) = (status.exits, status.last_exit.clone());
        drop(status);
        let changed = self.shared.record.change(|services| {
            if let Some(kept) = services.get_mut(name) {
                kept.process = None;
                kept.exits = exits;
                kept.last_exit = last_exit;
            }
        });
        if let Err(error) = changed {
            tracing::error!(%error, "a service's end cannot be written down");
        }
    }
}

/// Starts a process of the service: intent written down, started, its number written down.
fn spawn(shared: &Shared, spec: &ServiceSpec, log: &ServiceLog) -> Result<Running, CannotSpawn> {
    let RunService::Command(command) = &spec.run else {
        return Err(CannotSpawn::Here("the guard runs commands, no units".to_owned()));
    };
    let instance = format!("{}.{}.{}", spec.name, std::process::id(), nanos());
    let intent = Process { instance: instance.clone(), started: None };
    shared
        .record
        .change(|services| {
            if let Some(kept) = services.get_mut(&spec.name) {
                kept.process = Some(intent);
            }
        })
        .map_err(|error| CannotSpawn::Here(crate::output::chain(&error)))?;
    let child = spawn_command(command, &instance, log).map_err(|error| {
        let reason = format!("{}: {error}", command.program.display());
        if is_the_programs_fault(&error) {
            CannotSpawn::Program(reason)
        } else {
            CannotSpawn::Here(reason)
        }
    })?;
    let running = Running::Child(child);
    shared.events.write(&spec.name, &spec.key, running.pid(), EventKind::Started, None);
    write_down(shared, &spec.name, &instance, running.watched());
    Ok(running)
}

/// That this failed is no reason to end the service: it is found by its environment then.
fn write_down(shared: &Shared, name: &str, instance: &str, watched: &Watched) {
    let Some(start_ticks) = start_ticks(watched.pid()) else { return };
    let pid = watched.pid().as_raw_nonzero().get();
    let process =
        Process { instance: instance.to_owned(), started: Some(Started { pid, start_ticks }) };
    let changed = shared.record.change(|services| {
        if let Some(kept) = services.get_mut(name) {
            kept.process = Some(process);
        }
    });
    if let Err(error) = changed {
        tracing::error!(%error, "a service's process cannot be written down");
    }
}

fn spawn_command(
    command: &ServiceCommand,
    instance: &str,
    log: &ServiceLog,
) -> std::io::Result<GroupChild> {
    let writer = log.writer()?;
    let mut process = Command::new(&command.program);
    process
        .args(&command.args)
        .env_clear()
        .envs(&command.env)
        .env(INSTANCE, instance)
        .current_dir(&command.folder)
        .stdout(writer.try_clone()?)
        .stderr(writer);
    if let Some(run_as) = command.run_as {
        run_as.apply(&mut process);
    }
    GroupChild::spawn(&mut process)
}

fn nanos() -> u128 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    u128::from(now.tv_sec.unsigned_abs()) * 1_000_000_000 + u128::from(now.tv_nsec.unsigned_abs())
}
