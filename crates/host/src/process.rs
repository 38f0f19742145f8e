//! Process groups: started, watched and ended as a whole.

use std::fmt;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;
use std::time::Duration;

use procfs::process::{Process, Stat};
use rustix::process::{
    Pid, PidfdFlags, PidfdGetfdFlags, Signal, WaitId, WaitIdOptions, kill_process_group,
    pidfd_getfd, pidfd_open, pidfd_send_signal, waitid,
};
use serde::{Deserialize, Serialize};
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};

use crate::cgroup::Cgroup;

/// How a program exited.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// On its own, with this exit status.
    Status(i32),
    /// With exit status 0, while what it had started lived on.
    Background,
    Signal(i32),
    /// Killed by the guard, which had not heard from it in time.
    Watchdog,
    /// Killed by the kernel: it, or something that it started, or the machine needed more memory
    /// than there was.
    OutOfMemory,
    /// Unknown: an earlier guard started it, and only the parent learns the exit status.
    Unknown,
    NotStarted {
        reason: String,
    },
}

impl From<ExitStatus> for Exit {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Exit::Status(code),
            (None, Some(signal)) => Exit::Signal(signal),
            (None, None) => Exit::Unknown,
        }
    }
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Exit::Status(code) => write!(f, "exit status {code}"),
            Exit::Background => f.write_str(
                "it went into the background: start it in the foreground (nginx: `daemon off;`), \
                 or set `type = \"forking\"` and `pid_file` in cohort.toml",
            ),
            Exit::Watchdog => f.write_str("killed: its watchdog did not hear from it"),
            Exit::Signal(signal) => write!(f, "killed by signal {signal}"),
            Exit::OutOfMemory => f.write_str("killed by the kernel: out of memory"),
            Exit::Unknown => f.write_str("exit status unknown"),
            Exit::NotStarted { reason } => write!(f, "cannot start: {reason}"),
        }
    }
}

/// The number of the signal that cannot be handled, and a shell's exit status for it.
const KILL: i32 = 9;
const SHELLS_KILLED: i32 = 128 + KILL;

/// Longest wait for the end of a process that was killed: it may wait for a disk, or be traced.
const KILLED_MAX: Duration = Duration::from_secs(10);

/// A process whose exit can be awaited without reaping it.
///
/// Until it is reaped, a process keeps its number, so the rest of its group can be ended without
/// hitting an unrelated process that reused the number.
#[derive(Debug)]
pub(crate) struct Watched {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
}

impl Watched {
    /// Watches a process that is a group leader.
    pub(crate) fn open(pid: Pid) -> io::Result<Self> {
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for descriptors that others could close; nobody \
                      else can close an OwnedFd"
        )]
        let pidfd = AsyncFd::new(pidfd)?;
        Ok(Watched { pid, pidfd })
    }

    /// As [`Self::open`], but only for the process that started at `ticks`.
    pub(crate) fn started_at(pid: Pid, ticks: u64) -> Option<Self> {
        // Opened first, verified second: the number cannot be reused in between.
        let watched = Watched::open(pid).ok()?;
        (start_ticks(pid) == Some(ticks)).then_some(watched)
    }

    pub(crate) async fn ended(&self) {
        // The only error is a runtime that shuts down; then nothing polls this.
        if self.pidfd.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits for the end of a process that was killed, for at most [`KILLED_MAX`]; whether it came.
    pub(crate) async fn ended_when_killed(&self) -> bool {
        tokio::time::timeout(KILLED_MAX, self.ended()).await.is_ok()
    }

    /// Signals the whole group, and the leader itself, which may have joined another group. If they
    /// are gone, nothing happens.
    pub(crate) fn signal_group(&self, signal: Signal) {
        let _gone = kill_process_group(self.pid, signal);
        let _gone = pidfd_send_signal(self.pidfd.get_ref(), signal);
    }

    /// Kills the group, and everything in its cgroup.
    pub(crate) fn kill(&self, cgroup: Option<&Cgroup>) {
        self.signal_group(Signal::KILL);
        if let Some(cgroup) = cgroup {
            cgroup.kill();
        }
    }

    /// Asks the group to exit; kills it, and its cgroup, if its leader has not exited within
    /// `grace`, and waits for at most [`KILLED_MAX`].
    ///
    /// Returns true if the leader had to be killed.
    pub(crate) async fn stop_group(
        &self,
        signal: Signal,
        grace: Duration,
        cgroup: Option<&Cgroup>,
    ) -> bool {
        self.signal_group(signal);
        // A suspended process (SIGSTOP) would never handle the signal.
        self.signal_group(Signal::CONT);
        let late = tokio::time::timeout(grace, self.ended()).await.is_err();
        self.kill(cgroup);
        if late && !self.ended_when_killed().await {
            tracing::error!(pid = %self.pid.as_raw_nonzero(), "a killed process has not ended");
        }
        late
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }

    /// A copy of one of its descriptors, if this process may trace it.
    pub(crate) fn descriptor(&self, number: i32) -> io::Result<OwnedFd> {
        Ok(pidfd_getfd(self.pidfd.get_ref(), number, PidfdGetfdFlags::empty())?)
    }
}

/// A child of this process that leads a group, once it has started.
#[derive(Debug)]
pub(crate) struct GroupChild {
    child: Child,
    watched: Watched,
}

impl GroupChild {
    pub(crate) fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut child = command.spawn()?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let watched = pid.ok_or_else(|| io::Error::other("a process without a number"));
        match watched.and_then(Watched::open) {
            Ok(watched) => Ok(GroupChild { child, watched }),
            Err(error) => {
                child.start_kill()?;
                Err(error)
            }
        }
    }

    pub(crate) fn watched(&self) -> &Watched {
        &self.watched
    }

    /// The exit status of a leader that has ended on its own, which keeps its number.
    pub(crate) fn exit_status(&self) -> Option<i32> {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        waitid(WaitId::Pid(self.watched.pid), options).ok()??.exit_status()
    }

    /// Reaps a leader that has ended, and leaves what it started alone.
    pub(crate) async fn leave(&mut self) {
        let _known = self.child.wait().await;
    }

    /// After the leader has ended, or was killed: ends the rest of its group and of its cgroup, and
    /// returns the leader's exit.
    ///
    /// A process that traces the leader keeps it from being reaped: it is in the cgroup, or this
    /// gives up after [`KILLED_MAX`].
    pub(crate) async fn reap(&mut self, cgroup: Option<&Cgroup>) -> io::Result<Exit> {
        self.watched.kill(cgroup);
        match tokio::time::timeout(KILLED_MAX, self.child.wait()).await {
            Ok(exit) => {
                let exit = exit?.into();
                // As itself, or as a shell says it of its child.
                let killed = matches!(exit, Exit::Signal(KILL) | Exit::Status(SHELLS_KILLED));
                match killed && cgroup.is_some_and(Cgroup::ran_out_of_memory) {
                    true => Ok(Exit::OutOfMemory),
                    false => Ok(exit),
                }
            }
            Err(_) => Ok(Exit::Unknown),
        }
    }
}

/// The descendants of a process, in any group or session.
///
/// Each is held by a descriptor, so that it cannot be confused with another process that reused its
/// number.
#[derive(Debug)]
pub(crate) struct Descendants(Vec<OwnedFd>);

impl Descendants {
    /// Those alive now. A process whose parent has already exited is not found.
    pub(crate) fn of(ancestor: Pid) -> Self {
        let mut family = vec![ancestor];
        let mut held = Vec::new();
        let parents = parents();
        let mut next = 0;
        while let Some(parent) = family.get(next).copied() {
            next += 1;
            for (child, _) in parents.iter().filter(|(_, of)| *of == parent) {
                // Held first, verified second: the number cannot be reused in between.
                if let Ok(fd) = pidfd_open(*child, PidfdFlags::empty())
                    && parent_of(*child) == Some(parent)
                    && !family.contains(child)
                {
                    family.push(*child);
                    held.push(fd);
                }
            }
        }
        Descendants(held)
    }

    pub(crate) fn kill(&self) {
        for fd in &self.0 {
            let _gone = pidfd_send_signal(fd, Signal::KILL);
        }
    }
}

/// Whether others than its leader live in a session.
pub(crate) fn session_has_others(leader: Pid) -> bool {
    let all = procfs::process::all_processes().into_iter().flatten().flatten();
    let number = leader.as_raw_nonzero().get();
    let mut others = all.filter(|process| process.pid() != number);
    others.any(|process| process.stat().is_ok_and(|it| it.session == number && it.state != 'Z'))
}

/// Every process and its parent.
fn parents() -> Vec<(Pid, Pid)> {
    let numbers = procfs::process::all_processes().into_iter().flatten().flatten();
    let numbers = numbers.filter_map(|process| Pid::from_raw(process.pid()));
    numbers.filter_map(|pid| Some((pid, parent_of(pid)?))).collect()
}

fn parent_of(pid: Pid) -> Option<Pid> {
    Pid::from_raw(stat_of(pid)?.ppid)
}

/// When a process started, in clock ticks since boot. Number and start time together identify a
/// process. `None` if there is no such process, or only a zombie.
pub(crate) fn start_ticks(pid: Pid) -> Option<u64> {
    let stat = stat_of(pid)?;
    (!matches!(stat.state, 'Z' | 'X')).then_some(stat.starttime)
}

/// As [`start_ticks`], of a zombie too.
pub(crate) fn started_ticks(pid: Pid) -> Option<u64> {
    Some(stat_of(pid)?.starttime)
}

/// How long a process has been running; `None` if there is no such process, or only a zombie.
pub(crate) fn age(pid: Pid) -> Option<Duration> {
    let started_ms = start_ticks(pid)?.saturating_mul(1000) / procfs::ticks_per_second();
    Some(Duration::from_millis(crate::clock::boot_time_ms().saturating_sub(started_ms)))
}

fn stat_of(pid: Pid) -> Option<Stat> {
    Process::new(pid.as_raw_nonzero().get()).ok()?.stat().ok()
}

/// The real user of a process.
pub(crate) fn user_of(pid: Pid) -> Option<u32> {
    Some(Process::new(pid.as_raw_nonzero().get()).ok()?.status().ok()?.ruid)
}

/// The signal that asks a service to stop, by its usual name, with or without `SIG`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum StopSignal {
    #[default]
    #[serde(alias = "SIGTERM")]
    Term,
    #[serde(alias = "SIGINT")]
    Int,
    #[serde(alias = "SIGQUIT")]
    Quit,
    #[serde(alias = "SIGHUP")]
    Hup,
    #[serde(alias = "SIGUSR1")]
    Usr1,
    #[serde(alias = "SIGUSR2")]
    Usr2,
    #[serde(alias = "SIGKILL")]
    Kill,
}

impl From<StopSignal> for Signal {
    fn from(signal: StopSignal) -> Self {
        match signal {
            StopSignal::Term => Signal::TERM,
            StopSignal::Int => Signal::INT,
            StopSignal::Quit => Signal::QUIT,
            StopSignal::Hup => Signal::HUP,
            StopSignal::Usr1 => Signal::USR1,
            StopSignal::Usr2 => Signal::USR2,
            StopSignal::Kill => Signal::KILL,
        }
    }
}
