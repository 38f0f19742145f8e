//! A child process.

use std::fs::File;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// How long a process may take to listen.
const START_MAX: Duration = Duration::from_secs(30);

/// A child process; killed when dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts it, with its output in `log` (appended).
    pub fn start(name: &str, command: &mut Command, log: &Path) -> Result<Process> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("log {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            // Only the parent gets Ctrl-C, and stops everything in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("{name}: {command:?}"))?;
        Ok(Process { name: name.to_owned(), child, ended: None })
    }

    /// Its pid.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        if self.ended.is_none() {
            self.ended = self.child.try_wait().ok().flatten();
        }
        self.ended.is_none()
    }

    /// Sends a signal, unless it has exited.
    pub fn signal(&mut self, signal: Signal) {
        if self.runs()
            && let Some(pid) = i32::try_from(self.id()).ok().and_then(Pid::from_raw)
        {
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills it (SIGKILL) and reaps it.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.ended = self.child.wait().ok().or(self.ended);
    }

    /// Sends SIGTERM, and SIGKILL after `patience`. True when it exited on its own.
    pub fn stop(&mut self, patience: Duration) -> bool {
        self.signal(Signal::TERM);
        let begun = Instant::now();
        while self.runs() {
            if begun.elapsed() > patience {
                self.kill();
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    /// Waits until it listens. An error includes what it printed to `log`.
    pub fn until_it_listens(&mut self, address: SocketAddr, log: &Path) -> Result<()> {
        let begun = Instant::now();
        while TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_err() {
            let text = || std::fs::read_to_string(log).unwrap_or_default();
            ensure!(self.runs(), "{} ended: {}", self.name, text());
            ensure!(begun.elapsed() < START_MAX, "{} does not listen: {}", self.name, text());
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.runs() {
            self.kill();
        }
    }
}

/// Kills a process that is not our child, by pid.
pub(crate) fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

pub(crate) fn exists(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid).is_ok())
}

/// Stops processes that are not our children, by pid: SIGTERM to all, then SIGKILL to those left
/// after `patience`.
pub(crate) fn end_all(pids: &[i32], patience: Duration) {
    let tell = |signal: Signal| {
        for pid in pids.iter().copied().filter(|pid| exists(*pid)) {
            if let Some(id) = Pid::from_raw(pid) {
                let _ = kill_process(id, signal);
            }
        }
    };
    tell(Signal::TERM);
    let begun = Instant::now();
    while pids.iter().any(|pid| exists(*pid)) && begun.elapsed() < patience {
        std::thread::sleep(Duration::from_millis(20));
    }
    tell(Signal::KILL);
}
