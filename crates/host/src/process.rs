//! Processes as groups: started, watched and ended as a whole.

use std::io;
use std::os::fd::OwnedFd;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open, pidfd_send_signal};
use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};

/// A process whose end can be waited for without reaping it.
///
/// A process that ended but was not reaped keeps its number, so that the rest of its group can be
/// ended without hitting a stranger who got the number anew.
#[derive(Debug)]
pub(crate) struct Watched {
    pid: Pid,
    pidfd: AsyncFd<OwnedFd>,
}

impl Watched {
    /// Watches a process that leads its own group.
    pub(crate) fn open(pid: Pid) -> io::Result<Self> {
        let pidfd = pidfd_open(pid, PidfdFlags::NONBLOCK)?;
        #[expect(
            deprecated,
            reason = "its successor is unsafe, for descriptors that could be closed by others; an \
                      OwnedFd cannot"
        )]
        let pidfd = AsyncFd::new(pidfd)?;
        Ok(Watched { pid, pidfd })
    }

    /// Waits until the process has ended.
    pub(crate) async fn ended(&self) {
        // The only error is a runtime that shuts down, and then nobody polls this any more.
        if self.pidfd.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Sends a signal to the whole group. A group that is gone is no error.
    pub(crate) fn signal_group(&self, signal: Signal) {
        let _gone = kill_process_group(self.pid, signal);
    }

    /// Asks the group to end; kills it when its leader has not ended in time.
    ///
    /// True when it had to be killed.
    pub(crate) async fn stop_group(&self, signal: Signal, grace: Duration) -> bool {
        self.signal_group(signal);
        // A stopped process (SIGSTOP) would never see the signal.
        self.signal_group(Signal::CONT);
        let late = tokio::time::timeout(grace, self.ended()).await.is_err();
        self.signal_group(Signal::KILL);
        if late {
            self.ended().await;
        }
        late
    }

    pub(crate) fn pid(&self) -> Pid {
        self.pid
    }
}

/// A child of this process that leads its own group.
#[derive(Debug)]
pub(crate) struct GroupChild {
    child: Child,
    watched: Watched,
}

impl GroupChild {
    /// Starts the command as the leader of a new group.
    pub(crate) fn spawn(command: &mut Command) -> io::Result<Self> {
        let mut child = command.process_group(0).stdin(Stdio::null()).spawn()?;
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

    /// Ends what is left of the group, once its leader has ended, and says how the leader did.
    pub(crate) async fn reap(mut self) -> io::Result<ExitStatus> {
        self.watched.ended().await;
        self.watched.signal_group(Signal::KILL);
        self.child.wait().await
    }
}

/// The processes that descend from one, whatever group or session they have moved to.
///
/// Each is held by a descriptor, so that none is mistaken for another that got its number.
#[derive(Debug)]
pub(crate) struct Descendants(Vec<OwnedFd>);

impl Descendants {
    /// Those that there are now. One whose parent has ended before is nobody's descendant.
    pub(crate) fn of(ancestor: Pid) -> Self {
        let mut family = vec![ancestor];
        let mut held = Vec::new();
        let parents = parents();
        let mut next = 0;
        while let Some(parent) = family.get(next).copied() {
            next += 1;
            for (child, _) in parents.iter().filter(|(_, of)| *of == parent) {
                // Held first, verified second: the number cannot change hands between the two.
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

    /// Kills those that are left.
    pub(crate) fn kill(&self) {
        for fd in &self.0 {
            let _gone = pidfd_send_signal(fd, Signal::KILL);
        }
    }
}

/// Every process with its parent.
fn parents() -> Vec<(Pid, Pid)> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    numbers.filter_map(Pid::from_raw).filter_map(|pid| Some((pid, parent_of(pid)?))).collect()
}

fn parent_of(pid: Pid) -> Option<Pid> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    let (_, fields) = stat.rsplit_once(')')?;
    Pid::from_raw(fields.split_ascii_whitespace().nth(1)?.parse().ok()?)
}

/// When a process was started, in clock ticks since the machine's start: with its number, the
/// identity of a process. `None` when there is no such process, or only its remains.
pub(crate) fn start_ticks(pid: Pid) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    // The second field is a name in parentheses that may hold anything, parentheses as well.
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

/// Whether a program could not be started because of what it is: missing, no program, not allowed.
/// Anything else (no memory, no process numbers, no descriptors) is the machine's doing.
pub(crate) fn is_the_programs_fault(error: &io::Error) -> bool {
    use rustix::io::Errno as E;
    let faults = [E::NOENT, E::ACCESS, E::NOEXEC, E::NOTDIR, E::ISDIR, E::LOOP, E::PERM];
    let errno = error.raw_os_error().map(E::from_raw_os_error);
    errno.is_some_and(|errno| faults.contains(&errno))
}

/// A signal by its usual name, with or without `SIG`.
pub(crate) fn signal_by_name(name: &str) -> Option<Signal> {
    match name.strip_prefix("SIG").unwrap_or(name) {
        "TERM" => Some(Signal::TERM),
        "INT" => Some(Signal::INT),
        "QUIT" => Some(Signal::QUIT),
        "HUP" => Some(Signal::HUP),
        "USR1" => Some(Signal::USR1),
        "USR2" => Some(Signal::USR2),
        "KILL" => Some(Signal::KILL),
        _ => None,
    }
}
