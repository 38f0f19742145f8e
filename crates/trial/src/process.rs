//! A process that we started, and its end.

use std::fs::File;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};

/// A process that we started; it is ended when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    ended: Option<ExitStatus>,
}

impl Process {
    /// Starts it, with its output in `log` (appended).
    ///
    /// # Errors
    /// When it cannot be started.
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
            // Ctrl-C is for whoever plays, who then ends everything in order.
            .process_group(0)
            .spawn()
            .with_context(|| format!("{name}: {command:?}"))?;
        Ok(Process { name: name.to_owned(), child, ended: None })
    }

    /// What it is called here.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number.
    #[must_use]
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

    /// Sends a signal; one that has ended gets none.
    pub fn signal(&mut self, signal: Signal) {
        if self.runs()
            && let Some(pid) = i32::try_from(self.id()).ok().and_then(Pid::from_raw)
        {
            let _ = kill_process(pid, signal);
        }
    }

    /// Kills it (−9) and waits for its end.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.ended = self.child.wait().ok().or(self.ended);
    }

    /// Asks it to end (TERM), kills it after `patience`. True when it ended by itself.
    pub fn stop(&mut self, patience: Duration) -> bool {
        self.signal(Signal::TERM);
        let ended = self.wait(patience);
        if !ended {
            self.kill();
        }
        ended
    }

    /// Waits for its end. False when it still runs.
    pub fn wait(&mut self, patience: Duration) -> bool {
        let begun = Instant::now();
        while self.runs() {
            if begun.elapsed() > patience {
                return false;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        true
    }

    /// How it ended, if it has.
    pub fn status(&mut self) -> Option<ExitStatus> {
        self.runs();
        self.ended
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.runs() {
            self.kill();
        }
    }
}

/// Kills a process that is not our child (−9), by number.
pub(crate) fn kill(pid: i32) {
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Whether a process of this number exists.
pub(crate) fn exists(pid: i32) -> bool {
    Pid::from_raw(pid).is_some_and(|pid| test_kill_process(pid).is_ok())
}

/// Ends processes that are not our children, by number: TERM to all, KILL to those that still
/// exist after `patience`.
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
