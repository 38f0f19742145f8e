//! One service: started, watched, restarted when it exits, stopped on request.

use std::sync::Arc;
use std::time::Duration;

use cohort_base::chain;
use cohort_base::retry::{PROGRAM, Pauses};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::events::{EventKind, EventLog};
use super::leftover::releases;
use super::log::ServiceLog;
use super::state::{GROUND, INSTANCE, Kept, Process, RELEASES, Record, Started};
use crate::cgroup::{Cgroup, Cgroups};
use crate::clock::boot_time;
use crate::confine::Confined;
use crate::launch::Launch;
use crate::process::{Descendants, Exit, GroupChild, Watched, is_the_programs_fault, start_ticks};
use crate::service::{RunService, ServiceCommand, ServiceSpec, ServiceState, ServiceStatus};

/// A service that stayed up this long is not in a crash loop.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// What the services of one guard share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) record: Record,
    pub(crate) events: EventLog,
    pub(crate) confine: Launch,
    pub(crate) cgroups: Cgroups,
}

/// One service's files and name, independent of what runs.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    pub(crate) shared: Arc<Shared>,
    pub(crate) log: Arc<ServiceLog>,
    status: Arc<Mutex<ServiceStatus>>,
    /// Of what runs.
    cgroup: Arc<Mutex<Option<Cgroup>>>,
}

/// A service under supervision.
#[derive(Debug)]
pub(crate) struct Supervised {
    pub(crate) key: String,
    home: Home,
    stop: CancellationToken,
    task: Option<tokio::task::JoinHandle<Option<Running>>>,
    /// What was killed and has not ended.
    left: Option<Running>,
}

/// Why a service was not started, for people.
#[derive(Debug)]
pub(crate) enum CannotSpawn {
    Program(String),
    Machine(String),
}

/// A process of the service, and all that it started.
#[derive(Debug)]
struct Running {
    leader: Leader,
    cgroup: Option<Cgroup>,
}

/// Our child, or one that an earlier guard started.
#[derive(Debug)]
enum Leader {
    Child(GroupChild),
    Found(Watched),
}

impl Running {
    fn watched(&self) -> &Watched {
        match &self.leader {
            Leader::Child(child) => child.watched(),
            Leader::Found(watched) => watched,
        }
    }

    fn pid(&self) -> u32 {
        self.watched().pid().as_raw_nonzero().get().unsigned_abs()
    }

    /// After it has ended, or was killed: ends what it started. Returns itself if something has
    /// not ended.
    async fn exit(mut self) -> (Exit, Option<Running>) {
        let cgroup = self.cgroup.as_ref();
        let exit = match &mut self.leader {
            Leader::Child(child) => child.reap(cgroup).await.unwrap_or(Exit::Unknown),
            Leader::Found(watched) => {
                watched.kill(cgroup);
                Exit::Unknown
            }
        };
        let mut ended = self.watched().ended_when_killed().await;
        if let Some(cgroup) = &self.cgroup {
            ended &= cgroup.clone().end().await;
        }
        (exit, (!ended).then_some(self))
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
        Home { shared, log, status: Arc::default(), cgroup: Arc::default() }
    }

    pub(crate) fn status(&self) -> ServiceStatus {
        let usage = self.cgroup.lock().as_ref().map(Cgroup::usage).unwrap_or_default();
        ServiceStatus { output: self.log.tail(), usage, ..self.status.lock().clone() }
    }

    /// Starts a process: records its mark first, its number afterwards.
    async fn spawn(&self, spec: &ServiceSpec) -> Result<Running, CannotSpawn> {
        let RunService::Command(command) = &spec.run else {
            return Err(CannotSpawn::Machine("the guard runs commands, not units".to_owned()));
        };
        let instance = format!("{}.{}.{}", spec.name, std::process::id(), boot_time().as_nanos());
        let cgroup = self.shared.cgroups.fresh(&spec.name, Some(&command.limits)).await;
        let cgroup = cgroup.map_err(|error| CannotSpawn::Machine(chain(&error)))?;
        let cgroups = cgroup.iter().flat_map(Cgroup::paths).cloned().collect();
        let process = Process { instance, cgroups, started: None };
        self.shared
            .record
            .update(&spec.name, |kept| kept.process = Some(process.clone()))
            .map_err(|error| CannotSpawn::Machine(chain(&error)))?;
        let started = self.spawn_command(command, &process).await;
        if let (Err(_), Some(cgroup)) = (&started, &cgroup) {
            cgroup.clone().end().await;
        }
        let child = started.map_err(|error| {
            let reason = format!("{}: {error}", command.program.display());
            if is_the_programs_fault(&error) {
                CannotSpawn::Program(reason)
            } else {
                CannotSpawn::Machine(reason)
            }
        })?;
        let running = Running { leader: Leader::Child(child), cgroup };
        self.shared.events.write(spec, running.pid(), EventKind::Started, None);
        self.started(spec, process, running.watched());
        Ok(running)
    }

    async fn spawn_command(
        &self,
        command: &ServiceCommand,
        process: &Process,
    ) -> std::io::Result<GroupChild> {
        let own = [
            (INSTANCE, process.instance.as_str()),
            (GROUND, self.shared.record.ground()),
            (RELEASES, releases(command).unwrap_or_default()),
        ];
        let mut env = command.env.clone();
        env.extend(own.map(|(name, value)| (name.to_owned(), value.to_owned())));
        let confined = Confined {
            args: command.args.clone(),
            env,
            run_as: command.run_as,
            capabilities: command.capabilities.clone(),
            isolation: command.isolation.clone(),
            cgroups: process.cgroups.clone(),
            ..Confined::new(command.program.clone(), command.folder.clone())
        };
        self.shared.confine.start(&confined, self.log.writer()?.into()).await
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
    pub(crate) async fn start(home: &Home, spec: ServiceSpec) -> Result<Self, CannotSpawn> {
        let running = home.spawn(&spec).await?;
        let kept = Kept { spec, exits: 0, last_exit: None, process: None };
        Ok(Self::watch(home, kept, Some(running)))
    }

    /// Takes over from an earlier guard: adopts its process, or starts the service again.
    pub(crate) async fn take_over(home: &Home, mut kept: Kept) -> Self {
        let process = kept.process.take();
        let uid = kept.spec.user();
        let cgroup = process.as_ref().and_then(|it| Cgroup::at(it.cgroups.clone()));
        let leader = process.as_ref().and_then(|process| process.find(uid)).map(Leader::Found);
        let found = match leader {
            Some(leader) => Some(Running { leader, cgroup }),
            None => {
                // What its leader left behind.
                if let Some(cgroup) = cgroup {
                    cgroup.end().await;
                }
                None
            }
        };
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
            ..ServiceStatus::default()
        };
        let (home, stop) = (home.clone(), CancellationToken::new());
        let keeper = Keeper { home: home.clone(), spec, stop: stop.clone() };
        let task = Some(tokio::spawn(keeper.keep(running)));
        Supervised { key, home, stop, task, left: None }
    }

    /// Stops the service and all its processes.
    ///
    /// # Errors
    /// If one was killed and has not ended, for people; ask again.
    pub(crate) async fn stop(&mut self) -> Result<(), String> {
        self.stop.cancel();
        if let Some(task) = self.task.take() {
            self.left = task.await.unwrap_or_else(|error| {
                tracing::error!(key = self.key, %error, "supervision of a service panicked");
                None
            });
        } else if let Some(left) = self.left.take() {
            self.left = left.exit().await.1;
        }
        if let Some(left) = &self.left {
            return Err(format!("process {} was killed and has not ended", left.pid()));
        }
        *self.home.status.lock() = ServiceStatus::default();
        Ok(())
    }
}

/// Keeps one service running until it receives a stop request.
struct Keeper {
    home: Home,
    spec: ServiceSpec,
    stop: CancellationToken,
}

impl Keeper {
    async fn keep(self, mut running: Option<Running>) -> Option<Running> {
        let mut restarts = Restarts(PROGRAM.pauses());
        loop {
            let started = match running.take() {
                Some(running) => Ok(running),
                None if self.stop.is_cancelled() => return None,
                None => self.home.spawn(&self.spec).await,
            };
            let ran = match started {
                Ok(running) => {
                    self.home.status.lock().state = ServiceState::Running { pid: running.pid() };
                    self.home.cgroup.lock().clone_from(&running.cgroup);
                    let since = Instant::now();
                    let stopped = tokio::select! {
                        () = running.watched().ended() => false,
                        () = self.stop.cancelled() => true,
                    };
                    *self.home.cgroup.lock() = None;
                    if stopped {
                        return self.end(running).await;
                    }
                    let pid = running.pid();
                    self.ended_by_itself(pid, running.exit().await.0);
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
                () = self.stop.cancelled() => return None,
            }
        }
    }

    async fn end(&self, running: Running) -> Option<Running> {
        let RunService::Command(command) = &self.spec.run else { return None };
        let grace = Duration::from_millis(command.stop_timeout_ms);
        let pid = running.pid();
        let service = &self.spec.name;
        // Without a cgroup, what it started is found through its parents, while they live.
        let found = || Descendants::of(running.watched().pid());
        let left = running.cgroup.is_none().then(found);
        let cgroup = running.cgroup.as_ref();
        if running.watched().stop_group(command.stop_signal.into(), grace, cgroup).await {
            tracing::warn!(service, pid, "killed service: it did not stop in time");
        }
        let (exit, has_not_ended) = running.exit().await;
        if let Some(left) = left {
            left.kill();
        }
        self.home.shared.events.write(&self.spec, pid, EventKind::Stopped, Some(exit));
        has_not_ended
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
