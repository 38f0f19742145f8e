//! Runs one program of a release to its end: bounded in time, in output, and in what it leaves
//! behind.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::net::unix::pipe::Receiver;

use crate::cgroup::{Cgroup, Cgroups, Limits};
use crate::confine::Confined;
use crate::launch::Launch;
use crate::not_started::{Fault, fault_of};
use crate::output::Tail;
use crate::process::{Descendants, Exit, GroupChild};

/// Time between TERM and KILL for a program over its time limit. 2 s: enough to remove a lock file.
const TERM_GRACE: Duration = Duration::from_secs(2);

/// Bytes per read. The kernel's pipe holds 64 KiB.
const READ_BYTES: usize = 16 * 1024;

/// The user that a release's programs run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RunAs {
    pub uid: u32,
    pub gid: u32,
}

/// How an agent runs hooks and checks.
#[derive(Debug)]
pub struct Programs {
    pub confine: Launch,
    pub cgroups: Cgroups,
    /// Programs started so far, to name their cgroups.
    started: AtomicU64,
}

impl Programs {
    /// Hooks and checks start through `confine`, each in a cgroup of its own.
    #[must_use]
    pub fn new(confine: Launch, cgroups: Cgroups) -> Arc<Self> {
        Arc::new(Programs { confine, cgroups, started: AtomicU64::new(0) })
    }
}

impl Default for Programs {
    fn default() -> Self {
        let (confine, cgroups) = (Launch::confine(), Cgroups::default());
        Programs { confine, cgroups, started: AtomicU64::new(0) }
    }
}

#[derive(Debug)]
pub(crate) struct Program<'a> {
    pub(crate) programs: &'a Programs,
    pub(crate) confined: Confined,
    pub(crate) limits: Limits,
    pub(crate) limit: Duration,
    /// Where to note the running process, so that the next agent finds it if this one is killed.
    pub(crate) note: Option<PathBuf>,
}

/// Noted in a program's output, for people who expect a hook to start a service.
const LEFT_BEHIND: &[u8] = b"cohort: ended what it left running in the background: \
                             `[service]` in cohort.toml starts a service\n";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum End {
    Exited(Exit),
    TimedOut,
}

#[derive(Debug, thiserror::Error)]
pub(crate) enum ProgramError {
    /// The program file is at fault.
    #[error("cannot execute {}", path.display())]
    Spawn { path: PathBuf, source: io::Error },
    /// The machine's fault: no pipe, no process number, a directory that its user cannot enter.
    #[error("this server cannot run {}", path.display())]
    Watch { path: PathBuf, source: io::Error },
}

/// Where every user finds programs: what systemd gives a service.
const COMMON_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The environment in which every program of a release starts; nothing else is inherited. `home` is
/// of the user that it runs as, if that is not this process's own: then nothing that points into
/// this process's folders is inherited.
pub(crate) fn base_environment(home: Option<&Path>) -> BTreeMap<String, String> {
    environment_of(home, |name| std::env::var(name).ok())
}

fn environment_of(
    home: Option<&Path>,
    own: impl Fn(&str) -> Option<String>,
) -> BTreeMap<String, String> {
    let inherited: &[&str] = match home {
        Some(_) => &["LANG", "TZ"],
        None => &["LANG", "TZ", "PATH", "HOME", "TMPDIR"],
    };
    let inherited = inherited.iter().filter_map(|name| Some(((*name).to_owned(), own(name)?)));
    let mut env: BTreeMap<String, String> = inherited.collect();
    if let Some(home) = home {
        env.insert("HOME".to_owned(), home.display().to_string());
    }
    env.entry("PATH".to_owned()).or_insert_with(|| COMMON_PATH.to_owned());
    env
}

/// Kills the program, and what it started, if the future that waits for it is dropped.
struct KillOnDrop {
    child: Option<GroupChild>,
    cgroup: Option<Cgroup>,
}

impl Drop for KillOnDrop {
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            child.watched().kill(self.cgroup.as_ref());
        }
        if let Some(cgroup) = self.cgroup.take() {
            cgroup.kill();
            // Removed once it is empty; by the next agent, if this one is about to end.
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(cgroup.end());
            }
        }
    }
}

/// Runs a program; its output goes to `tail`. Whatever it started ends with it, also if the future
/// is dropped.
pub(crate) async fn run(program: &Program<'_>, tail: &mut Tail) -> Result<End, ProgramError> {
    let Program { programs, confined, .. } = program;
    let path = || confined.program.clone();
    let watch = |source| ProgramError::Watch { path: path(), source };
    let number = programs.started.fetch_add(1, Ordering::Relaxed);
    // What is not limited is not worth more than one directory.
    let limits = Some(&program.limits).filter(|limits| **limits != Limits::default());
    let cgroup = programs.cgroups.fresh(&format!("run-{number}"), limits).await.map_err(watch)?;
    let cgroups = cgroup.iter().flat_map(Cgroup::paths).cloned().collect();
    let mut running = KillOnDrop { child: None, cgroup };
    let confined = Confined { cgroups, ..confined.clone() };
    let (reader, writer) = io::pipe().map_err(watch)?;
    let started = programs.confine.start(&confined, writer.into(), &[]).await;
    let child = started.map_err(|error| match fault_of(&confined.program, error) {
        Fault::Program(source) => ProgramError::Spawn { path: path(), source },
        Fault::Machine(source) => watch(source),
    })?;
    let child = running.child.insert(child);
    let ended = finish(program, child, running.cgroup.as_ref(), reader, tail).await;
    if ended.is_ok() {
        running.child = None;
    }
    if let Some(cgroup) = running.cgroup.take() {
        cgroup.end().await;
    }
    ended
}

async fn finish(
    program: &Program<'_>,
    child: &mut GroupChild,
    cgroup: Option<&Cgroup>,
    reader: io::PipeReader,
    tail: &mut Tail,
) -> Result<End, ProgramError> {
    let watch = |source| ProgramError::Watch { path: program.confined.program.clone(), source };
    if let Some(note) = &program.note {
        crate::orphan::note(note, child.watched().pid());
    }
    let mut output = Receiver::from_owned_fd(reader.into()).map_err(watch)?;
    let timed_out = watch_program(child, cgroup, program.limit, &mut output, tail).await;
    if !timed_out && cgroup.is_some_and(|cgroup| cgroup.has_others(child.watched().pid())) {
        tail.push(LEFT_BEHIND);
    }
    let exit = child.reap(cgroup).await.map_err(watch)?;
    if let Some(note) = &program.note {
        crate::orphan::forget(note);
    }
    Ok(if timed_out { End::TimedOut } else { End::Exited(exit) })
}

/// Reads output until the program exits. Returns true if it exceeded its time limit and was killed.
async fn watch_program(
    child: &GroupChild,
    cgroup: Option<&Cgroup>,
    limit: Duration,
    output: &mut Receiver,
    tail: &mut Tail,
) -> bool {
    let timed_out = {
        let ended = async {
            match tokio::time::timeout(limit, child.watched().ended()).await {
                Ok(()) => false,
                Err(_) => {
                    // Collected while their parents live: some may have left the group.
                    let of_it = || Descendants::of(child.watched().pid());
                    let left = cgroup.is_none().then(of_it);
                    child.watched().stop_group(Signal::TERM, TERM_GRACE, cgroup).await;
                    if let Some(left) = left {
                        left.kill();
                    }
                    true
                }
            }
        };
        tokio::pin!(ended);
        let mut open = true;
        loop {
            tokio::select! {
                timed_out = &mut ended => break timed_out,
                readable = output.readable(), if open => {
                    open = readable.is_ok() && read_some(output, tail) != Read::Closed;
                }
            }
        }
    };
    // The rest of its output, whether the runtime has noticed it or not; bounded, because a stray
    // process may keep printing.
    for _ in 0..16 {
        let mut buffer = [0; READ_BYTES];
        match rustix::io::read(&*output, &mut buffer) {
            Ok(count) if count > 0 => tail.push(&buffer[..count]),
            _ => break,
        }
    }
    timed_out
}

#[derive(PartialEq, Eq)]
enum Read {
    Some,
    Nothing,
    Closed,
}

fn read_some(output: &mut Receiver, tail: &mut Tail) -> Read {
    let mut buffer = [0; READ_BYTES];
    match output.try_read(&mut buffer) {
        Ok(0) => Read::Closed,
        Ok(count) => {
            tail.push(&buffer[..count]);
            Read::Some
        }
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Read::Nothing,
        Err(_) => Read::Closed,
    }
}

#[cfg(test)]
mod program_test {
    use super::*;

    #[test]
    fn another_user_gets_nothing_of_the_agents_folders() {
        let own = |name: &str| Some(format!("/root/{name}"));
        let same = environment_of(None, own);
        assert_eq!((&*same["PATH"], &*same["HOME"]), ("/root/PATH", "/root/HOME"));
        let other = environment_of(Some(Path::new("/home/www")), own);
        let names: Vec<&str> = other.keys().map(String::as_str).collect();
        assert_eq!(names, ["HOME", "LANG", "PATH", "TZ"]);
        assert_eq!((&*other["PATH"], &*other["HOME"]), (COMMON_PATH, "/home/www"));
    }
}
