//! One service: started, watched, restarted when it exits, stopped on request.

use std::sync::Arc;
use std::time::Duration;

use cohort_base::chain;
use cohort_base::retry::{PROGRAM, Pauses, Schedule};
use parking_lot::Mutex;
use rustix::process::Signal;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::events::{EventKind, EventLog};
use super::leftover::releases;
use super::log::ServiceLog;
use super::notify::{NotifySocket, Said};
use super::pid_file;
use super::sockets::Sockets;
use super::state::{GROUND, INSTANCE, Kept, Process, RELEASES, Record, Started};
use crate::cgroup::{Cgroup, Cgroups};
use crate::clock::boot_time;
use crate::confine::Confined;
use crate::launch::Launch;
use crate::port::holder_of;
use crate::process::{
    Descendants, Exit, GroupChild, Watched, is_the_programs_fault, session_has_others, start_ticks,
};
use crate::service::{
    RunService, ServiceCommand, ServiceSpec, ServiceState, ServiceStatus, ServiceType,
};

/// A service that stayed up this long is not in a crash loop.
const STABLE_AFTER: Duration = Duration::from_secs(30);

/// How long the sockets of a stopped service stay open: a rollout stops it, and starts another
/// release of it, in seconds.
const SOCKETS_KEPT: Duration = Duration::from_secs(60);

/// Looks at a port that is taken: what was killed just before has it for a moment.
const TAKEN_LOOKS: u32 = 4;
const TAKEN_LOOK: Schedule = Schedule::new(Duration::from_millis(50), Duration::from_millis(500));

/// Longest wait for the file of a forking service, after its first process has ended.
const PID_FILE_MAX: Duration = Duration::from_secs(10);
const PID_FILE_LOOK: Schedule = Schedule::new(Duration::from_millis(5), Duration::from_millis(200));

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
    sockets: Arc<Mutex<Sockets>>,
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
    /// Something else has its port.
    Taken(String),
    Machine(String),
}

impl CannotSpawn {
    fn reason(self) -> String {
        match self {
            CannotSpawn::Program(reason)
            | CannotSpawn::Taken(reason)
            | CannotSpawn::Machine(reason) => reason,
        }
    }

    fn machine(error: &(dyn std::error::Error + 'static)) -> Self {
        CannotSpawn::Machine(chain(error))
    }
}

/// A process of the service, and all that it started.
#[derive(Debug)]
struct Running {
    leader: Leader,
    cgroup: Option<Cgroup>,
    notify: Option<NotifySocket>,
    /// As recorded.
    process: Process,
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

    fn state(&self) -> ServiceState {
        let pid = self.pid();
        match self.process.ready {
            true => ServiceState::Running { pid },
            false => ServiceState::Unready { pid },
        }
    }

    /// What it says next.
    async fn hear(&self) -> Said {
        match &self.notify {
            Some(socket) => socket.next().await,
            None => std::future::pending().await,
        }
    }

    fn pid(&self) -> u32 {
        self.watched().pid().as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether what its first process had started lives without it.
    fn lives_on(&self) -> bool {
        let pid = self.watched().pid();
        match &self.cgroup {
            Some(cgroup) => cgroup.has_others(pid),
            None => session_has_others(pid),
        }
    }

    /// After it has ended, or was killed: ends what it started. Returns itself if something has
    /// not ended.
    async fn exit(mut self) -> (Exit, Option<Running>) {
        let cgroup = self.cgroup.as_ref();
        let lives_on = self.lives_on();
        let exit = match &mut self.leader {
            Leader::Child(child) => match child.reap(cgroup).await.unwrap_or(Exit::Unknown) {
                Exit::Status(0) if lives_on => Exit::Background,
                exit => exit,
            },
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
        let (status, cgroup, sockets) = (Arc::default(), Arc::default(), Arc::default());
        Home { shared, log, status, cgroup, sockets }
    }

    /// Closes the service's sockets, unless it starts again soon.
    pub(crate) fn close_sockets_later(&self) {
        let home = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(SOCKETS_KEPT).await;
            home.close_sockets_if_stopped();
        });
    }

    pub(crate) fn close_sockets_if_stopped(&self) {
        if self.status.lock().state == ServiceState::Stopped {
            self.sockets.lock().close();
        }
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
        self.listen(command).await?;
        let instance = format!("{}.{}.{}", spec.name, std::process::id(), boot_time().as_nanos());
        let cgroup = self.shared.cgroups.fresh(&spec.name, Some(&command.limits)).await;
        let cgroup = cgroup.map_err(|error| CannotSpawn::machine(&error))?;
        let cgroups = cgroup.iter().flat_map(Cgroup::paths).cloned().collect();
        let ready = command.kind == ServiceType::Simple;
        let process = Process { instance, cgroups, started: None, ready };
        self.shared
            .record
            .update(&spec.name, |kept| kept.process = Some(process.clone()))
            .map_err(|error| CannotSpawn::machine(&error))?;
        let started = match bind_notify(command) {
            Ok(notify) => self.spawn_command(command, &process).await.map(|it| (it, notify)),
            Err(error) => Err(std::io::Error::other(error)),
        };
        if let (Err(_), Some(cgroup)) = (&started, &cgroup) {
            cgroup.clone().end().await;
        }
        let (child, notify) = started.map_err(|error| {
            let reason = format!("{}: {error}", command.program.display());
            if is_the_programs_fault(&error) {
                CannotSpawn::Program(reason)
            } else {
                CannotSpawn::Machine(reason)
            }
        })?;
        let mut running = Running { leader: Leader::Child(child), cgroup, notify, process };
        self.shared.events.write(spec, running.pid(), EventKind::Started, None);
        self.started(spec, &mut running);
        Ok(running)
    }

    /// Listens for the service, and makes sure that it can listen itself.
    async fn listen(&self, command: &ServiceCommand) -> Result<(), CannotSpawn> {
        let mut pauses = TAKEN_LOOK.pauses();
        for _ in 1..TAKEN_LOOKS {
            if self.try_listen(command).await?.is_none() {
                return Ok(());
            }
            tokio::time::sleep(pauses.next_pause()).await;
        }
        self.try_listen(command).await?.map_or(Ok(()), |taken| Err(CannotSpawn::Taken(taken)))
    }

    /// Says what has a port that the service needs, if anything does.
    async fn try_listen(&self, command: &ServiceCommand) -> Result<Option<String>, CannotSpawn> {
        let mut ports = command.ports.clone();
        let mut taken = None;
        match self.sockets.lock().want(&command.listen) {
            Ok(()) => {}
            Err((at, error)) if error.kind() == std::io::ErrorKind::AddrInUse => {
                ports = vec![at];
                taken = Some(format!("port {} is taken", at.port()));
            }
            Err((at, error)) => {
                return Err(CannotSpawn::Machine(format!("cannot listen on {at}: {error}")));
            }
        }
        if ports.is_empty() {
            return Ok(None);
        }
        let look = tokio::task::spawn_blocking(move || ports.into_iter().find_map(holder_of));
        let holder = look.await.ok().flatten();
        Ok(holder.map(|holder| holder.to_string()).or(taken))
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
        if let Some(path) = &command.notify {
            env.insert("NOTIFY_SOCKET".to_owned(), path.display().to_string());
        }
        if let Some(ms) = command.watchdog_ms {
            env.insert("WATCHDOG_USEC".to_owned(), ms.saturating_mul(1000).to_string());
        }
        let (variables, passed) = {
            let sockets = self.sockets.lock();
            (sockets.variables(), sockets.copies()?)
        };
        env.extend(variables.into_iter().map(|(name, value)| (name.to_owned(), value)));
        let confined = Confined {
            args: command.args.clone(),
            env,
            run_as: command.run_as,
            capabilities: command.capabilities.clone(),
            isolation: command.isolation.clone(),
            cgroups: process.cgroups.clone(),
            ..Confined::new(command.program.clone(), command.folder.clone())
        };
        self.shared.confine.start(&confined, self.log.writer()?.into(), &passed).await
    }

    /// Records a process's number. If that fails, the service runs anyway: the next guard finds it
    /// by its environment.
    fn started(&self, spec: &ServiceSpec, running: &mut Running) {
        let pid = running.watched().pid();
        let Some(start_ticks) = start_ticks(pid) else { return };
        let pid = pid.as_raw_nonzero().get();
        running.process.started = Some(Started { pid, start_ticks });
        self.record(spec, &running.process);
    }

    fn record(&self, spec: &ServiceSpec, process: &Process) {
        let process = process.clone();
        let updated = self.shared.record.update(&spec.name, |kept| kept.process = Some(process));
        if let Err(error) = updated {
            tracing::error!(reason = chain(&error), "cannot record the process of a service");
        }
    }
}

fn bind_notify(command: &ServiceCommand) -> Result<Option<NotifySocket>, String> {
    let Some(path) = &command.notify else { return Ok(None) };
    let bound = NotifySocket::bind(path, command.run_as);
    bound.map(Some).map_err(|error| format!("cannot make {}: {error}", path.display()))
}

impl Supervised {
    /// Starts the service for the first time; the result says whether its program could be run.
    pub(crate) async fn start(home: &Home, spec: ServiceSpec) -> Result<Self, CannotSpawn> {
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

/// Takes over a process that an earlier guard started.
async fn adopt(
    home: &Home,
    spec: &ServiceSpec,
    process: Process,
    uid: Option<u32>,
) -> Option<Running> {
    let cgroup = Cgroup::at(process.cgroups.clone());
    let Some(watched) = process.find(uid) else {
        // What its leader left behind.
        if let Some(cgroup) = cgroup {
            cgroup.end().await;
        }
        return None;
    };
    let mut notify = None;
    if let RunService::Command(command) = &spec.run {
        home.sockets.lock().take_back(&watched, &command.listen);
        notify = bind_notify(command).unwrap_or_else(|error| {
            tracing::warn!(service = spec.name, error, "cannot hear a service");
            None
        });
    }
    let mut running = Running { leader: Leader::Found(watched), cgroup, notify, process };
    home.shared.events.write(spec, running.pid(), EventKind::Adopted, None);
    home.started(spec, &mut running);
    Some(running)
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
    ByItself,
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
                        Ended::ByItself => self.ended_by_itself(pid, running.exit().await.0),
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
            let alive_by = watchdog.filter(|_| running.process.ready).map(|most| heard + most);
            let silent = async {
                match alive_by {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let said = tokio::select! {
                () = self.stop.cancelled() => return Ended::Asked,
                () = running.watched().ended() => match self.goes_on(running).await {
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
        let ready = (running.process.ready || said.ready) && !said.stopping;
        if ready != running.process.ready {
            running.process.ready = ready;
            self.home.record(&self.spec, &running.process);
            self.home.status.lock().state = running.state();
        }
    }

    /// After the first process of a forking service has ended well: goes on with the one that its
    /// file names.
    async fn goes_on(&self, running: &mut Running) -> Result<(), Ended> {
        let Some(command) = self.command() else { return Err(Ended::ByItself) };
        let (Leader::Child(child), ServiceType::Forking, Some(file)) =
            (&mut running.leader, command.kind, &command.pid_file)
        else {
            return Err(Ended::ByItself);
        };
        if child.exit_status() != Some(0) {
            return Err(Ended::ByItself);
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
        running.process.ready = true;
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
                status.exits += 1;
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
