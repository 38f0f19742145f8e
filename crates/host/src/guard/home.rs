//! What a service has, whatever runs of it: its files, its sockets, and how its processes start.

use std::sync::Arc;
use std::time::Duration;

use cohort_base::chain;
use cohort_base::retry::Schedule;
use parking_lot::Mutex;

use super::events::{EventKind, EventLog};
use super::leftover::releases;
use super::log::ServiceLog;
use super::notify::{NotifySocket, Said};
use super::sockets::Sockets;
use super::state::{GROUND, INSTANCE, Process, RELEASES, Record, Started};
use crate::cgroup::{Cgroup, Cgroups};
use crate::clock::boot_time;
use crate::confine::Confined;
use crate::launch::Launch;
use crate::not_started::{Fault, fault_of};
use crate::port::holder_of;
use crate::process::{Exit, GroupChild, Watched, session_has_others, started_ticks};
use crate::service::{
    RunService, ServiceCommand, ServiceSpec, ServiceState, ServiceStatus, ServiceType,
};

/// Looks at a port that is taken: what was killed just before has it for a moment.
const TAKEN_LOOKS: u32 = 4;
const TAKEN_LOOK: Schedule = Schedule::new(Duration::from_millis(50), Duration::from_millis(500));

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
    pub(super) status: Arc<Mutex<ServiceStatus>>,
    /// Of what runs.
    pub(super) cgroup: Arc<Mutex<Option<Cgroup>>>,
    sockets: Arc<Mutex<Sockets>>,
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
    pub(super) fn reason(self) -> String {
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
pub(super) struct Running {
    pub(super) leader: Leader,
    pub(super) cgroup: Option<Cgroup>,
    pub(super) notify: Option<NotifySocket>,
    /// As recorded: whether it was ready once.
    pub(super) process: Process,
    pub(super) ready: bool,
}

/// Our child, or one that an earlier guard started.
#[derive(Debug)]
pub(super) enum Leader {
    Child(GroupChild),
    Found(Watched),
}

impl Running {
    pub(super) fn watched(&self) -> &Watched {
        match &self.leader {
            Leader::Child(child) => child.watched(),
            Leader::Found(watched) => watched,
        }
    }

    pub(super) fn state(&self) -> ServiceState {
        let pid = self.pid();
        match self.ready {
            true => ServiceState::Running { pid },
            false => ServiceState::Unready { pid },
        }
    }

    /// What it says next.
    pub(super) async fn hear(&self) -> Said {
        match &self.notify {
            Some(socket) => socket.next().await,
            None => std::future::pending().await,
        }
    }

    pub(super) fn pid(&self) -> u32 {
        self.watched().pid().as_raw_nonzero().get().unsigned_abs()
    }

    /// Whether what its first process had started lives without it.
    fn is_outlived(&self) -> bool {
        let pid = self.watched().pid();
        match &self.cgroup {
            Some(cgroup) => cgroup.has_others(pid),
            None => session_has_others(pid),
        }
    }

    /// After it has ended, or was killed: ends what it started. Returns itself if something has
    /// not ended.
    pub(super) async fn exit(mut self) -> (Exit, Option<Running>) {
        let cgroup = self.cgroup.as_ref();
        let is_outlived = self.is_outlived();
        let exit = match &mut self.leader {
            Leader::Child(child) => match child.reap(cgroup).await.unwrap_or(Exit::Unknown) {
                Exit::Status(0) if is_outlived => Exit::Background,
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

impl Home {
    pub(crate) fn new(shared: Arc<Shared>, log: Arc<ServiceLog>) -> Self {
        let (status, cgroup, sockets) = (Arc::default(), Arc::default(), Arc::default());
        Home { shared, log, status, cgroup, sockets }
    }

    /// Closes the sockets of a stopped service, at these ports or all.
    pub(crate) fn close_sockets(&self, ports: Option<&[u16]>) {
        let mut sockets = self.sockets.lock();
        match ports {
            Some(ports) => sockets.release(ports),
            None => sockets.close(),
        }
    }

    pub(crate) fn status(&self) -> ServiceStatus {
        let usage = self.cgroup.lock().as_ref().map(Cgroup::usage).unwrap_or_default();
        ServiceStatus { output: self.log.tail(), usage, ..self.status.lock().clone() }
    }

    /// Starts a process: records its mark first, its number afterwards.
    pub(super) async fn spawn(&self, spec: &ServiceSpec) -> Result<Running, CannotSpawn> {
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
            let program = command.program.display();
            match fault_of(&command.program, error) {
                Fault::Program(error) => CannotSpawn::Program(format!("{program}: {error}")),
                Fault::Machine(error) => CannotSpawn::Machine(format!("{program}: {error}")),
            }
        })?;
        let leader = Leader::Child(child);
        let mut running = Running { leader, cgroup, notify, process, ready };
        self.status.lock().says.clear();
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
    pub(super) fn started(&self, spec: &ServiceSpec, running: &mut Running) {
        let pid = running.watched().pid();
        let Some(start_ticks) = started_ticks(pid) else { return };
        let pid = pid.as_raw_nonzero().get();
        self.log.started(pid);
        running.process.started = Some(Started { pid, start_ticks });
        self.record(spec, &running.process);
    }

    pub(super) fn record(&self, spec: &ServiceSpec, process: &Process) {
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

/// Takes over a process that an earlier guard started.
pub(super) async fn adopt(
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
    let (leader, ready) = (Leader::Found(watched), process.ready);
    let mut running = Running { leader, cgroup, notify, process, ready };
    if !ready && running.notify.is_some() {
        // It may have said that it is ready while nobody listened.
        running.exit().await;
        return None;
    }
    home.shared.events.write(spec, running.pid(), EventKind::Adopted, None);
    home.started(spec, &mut running);
    Some(running)
}
