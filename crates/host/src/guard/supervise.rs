//! One service: started, watched, restarted when it exits, stopped on request.

use std::time::Duration;

use cohort_base::chain;
use cohort_base::retry::{PROGRAM, Pauses, Schedule};
use rustix::process::Signal;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::events::EventKind;
use super::home::{CannotSpawn, Home, Leader, Running, adopt};
use super::notify::Said;
use super::pid_file;
use super::state::Kept;
use crate::process::{Descendants, Exit};
use crate::service::{
    RunService, ServiceCommand, ServiceSpec, ServiceState, ServiceStatus, ServiceType,
};

/// A service that stayed up this long is not in a crash loop.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// Longest wait for the file of a forking service, after its first process has ended.
const PID_FILE_MAX: Duration = Duration::from_secs(10);
const PID_FILE_LOOK: Schedule = Schedule::new(Duration::from_millis(5), Duration::from_millis(200));

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

impl Supervised {
    /// Starts the service for the first time; the result says whether its program could be run.
    pub(crate) async fn start(home: &Home, spec: ServiceSpec) -> Result<Self, CannotSpawn> {
        home.log.forget();
        let running = home.spawn(&spec).await?;
        Ok(Self::watch(home, Kept::new(spec), Some(running)))
    }

    /// Takes over from an earlier guard: adopts its process, or starts the service again.
    pub(crate) async fn take_over(home: &Home, mut kept: Kept) -> Self {
        let uid = kept.spec.user();
        let found = match kept.process.take() {
            Some(process) => adopt(home, &kept.spec, process, uid).await,
            None => None,
        };
        Self::watch(home, kept, found)
    }

    fn watch(home: &Home, kept: Kept, running: Option<Running>) -> Self {
        let Kept { spec, exits, last_exit, process: _, finished } = kept;
        let state = match &running {
            Some(running) => running.state(),
            None if finished => ServiceState::Finished,
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

/// Why a process needs no more watching.
enum Ended {
    /// Asked to stop it.
    Asked,
    /// It has ended.
    Exited,
    /// It has said nothing for too long.
    Silent,
    /// Its first process ended, and nothing goes on.
    Lost(String),
}

impl Keeper {
    async fn keep(self, mut running: Option<Running>) -> Option<Running> {
        let mut restarts = Restarts(PROGRAM.pauses());
        loop {
            if running.is_none() && self.home.status.lock().state == ServiceState::Finished {
                self.stop.cancelled().await;
            }
            let started = match running.take() {
                Some(running) => Ok(running),
                None if self.stop.is_cancelled() => return None,
                None => self.home.spawn(&self.spec).await,
            };
            let ran = match started {
                Ok(mut running) => {
                    self.home.status.lock().state = running.state();
                    self.home.cgroup.lock().clone_from(&running.cgroup);
                    let since = Instant::now();
                    let ended = self.watch(&mut running).await;
                    *self.home.cgroup.lock() = None;
                    let pid = running.pid();
                    match ended {
                        Ended::Asked => return self.end(running).await,
                        Ended::Exited => self.ended_by_itself(pid, running.exit().await.0),
                        Ended::Silent => {
                            let grace = Duration::from_millis(self.command()?.stop_timeout_ms);
                            let cgroup = running.cgroup.as_ref();
                            running.watched().stop_group(Signal::ABORT, grace, cgroup).await;
                            running.exit().await;
                            self.ended_by_itself(pid, Exit::Watchdog);
                        }
                        Ended::Lost(reason) => {
                            running.exit().await;
                            self.ended_by_itself(pid, Exit::NotStarted { reason });
                        }
                    }
                    since.elapsed()
                }
                Err(cannot) => {
                    let reason = cannot.reason();
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

    fn command(&self) -> Option<&ServiceCommand> {
        match &self.spec.run {
            RunService::Command(command) => Some(command),
            RunService::Unit => None,
        }
    }

    /// Watches a process until its end, and hears what it says meanwhile.
    async fn watch(&self, running: &mut Running) -> Ended {
        let watchdog = self.command().and_then(|it| it.watchdog_ms).map(Duration::from_millis);
        let mut heard = Instant::now();
        loop {
            let is_heard = running.ready && running.notify.is_some();
            let alive_by = watchdog.filter(|_| is_heard).map(|most| heard + most);
            let silent = async {
                match alive_by {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // What it said comes first: this guard may have been late itself.
            let said = tokio::select! {
                biased;
                () = self.stop.cancelled() => return Ended::Asked,
                () = running.watched().ended() => match self.follow_daemon(running).await {
                    Ok(()) => continue,
                    Err(ended) => return ended,
                },
                said = running.hear() => said,
                () = silent => return Ended::Silent,
            };
            if said.alive || said.ready {
                heard = Instant::now();
            }
            self.take(said, running);
        }
    }

    fn take(&self, said: Said, running: &mut Running) {
        if let Some(text) = said.status {
            self.home.status.lock().says = text;
        }
        let ready = (running.ready || said.ready) && !said.stopping;
        if ready == running.ready {
            return;
        }
        running.ready = ready;
        self.home.status.lock().state = running.state();
        // Once: a service that changes its mind all the time must not make the disk busy.
        if ready && !running.process.ready {
            running.process.ready = true;
            self.home.record(&self.spec, &running.process);
        }
    }

    /// After the first process of a forking service has ended well: goes on with the one that its
    /// file names.
    async fn follow_daemon(&self, running: &mut Running) -> Result<(), Ended> {
        let Some(command) = self.command() else { return Err(Ended::Exited) };
        let (Leader::Child(child), ServiceType::Forking, Some(file)) =
            (&mut running.leader, command.kind, &command.pid_file)
        else {
            return Err(Ended::Exited);
        };
        if child.exit_status() != Some(0) {
            return Err(Ended::Exited);
        }
        let (first, user) = (running.process.started, self.spec.user());
        let named = async {
            let mut pauses = PID_FILE_LOOK.pauses();
            loop {
                match pid_file::named(file, user, first, running.cgroup.as_ref()) {
                    Ok(watched) => return watched,
                    Err(_) => tokio::time::sleep(pauses.next_pause()).await,
                }
            }
        };
        let watched = tokio::select! {
            () = self.stop.cancelled() => return Err(Ended::Asked),
            named = tokio::time::timeout(PID_FILE_MAX, named) => named,
        };
        let Ok(watched) = watched else {
            let why = pid_file::named(file, user, first, running.cgroup.as_ref());
            let why = why.err().unwrap_or_default();
            return Err(Ended::Lost(format!("pid_file {}: {why}", file.display())));
        };
        child.leave().await;
        running.leader = Leader::Found(watched);
        (running.process.ready, running.ready) = (true, true);
        self.home.started(&self.spec, running);
        self.home.status.lock().state = running.state();
        Ok(())
    }

    async fn end(&self, running: Running) -> Option<Running> {
        let command = self.command()?;
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
        home.shared.events.write(spec, pid, EventKind::Exited, Some(exit.clone()));
        let oneshot = self.command().is_some_and(|it| it.kind == ServiceType::Oneshot);
        let finished = oneshot && matches!(exit, Exit::Status(0) | Exit::Background);
        let exits = {
            let mut status = home.status.lock();
            if finished {
                status.state = ServiceState::Finished;
            } else {
                tracing::warn!(service = spec.name, pid, %exit, "service exited on its own");
                status.state = ServiceState::Waiting;
                // An earlier guard started it: it may have ended well.
                status.exits += u64::from(!oneshot || exit != Exit::Unknown);
            }
            status.last_exit = Some(exit.clone());
            status.exits
        };
        let updated = home.shared.record.update(&spec.name, |kept| {
            kept.process = None;
            kept.exits = exits;
            kept.last_exit = Some(exit);
            kept.finished = finished;
        });
        if let Err(error) = updated {
            tracing::error!(reason = chain(&error), "cannot record the end of a service");
        }
    }
}

#[cfg(test)]
#[path = "supervise_test.rs"]
mod supervise_test;
