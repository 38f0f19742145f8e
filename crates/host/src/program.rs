//! Runs one program of a release to its end: bounded in time, in output, and in what it leaves
//! behind.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cohort_base::retry::Schedule;
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use tokio::net::unix::pipe::Receiver;
use tokio::process::Command;

use crate::output::Tail;
use crate::process::{Descendants, Exit, GroupChild, is_the_programs_fault};

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

impl RunAs {
    pub(crate) fn apply(self, command: &mut Command) {
        command.uid(self.uid).gid(self.gid);
    }
}

#[derive(Debug)]
pub(crate) struct Program<'a> {
    pub(crate) path: &'a Path,
    pub(crate) args: &'a [String],
    /// The whole environment: nothing is inherited.
    pub(crate) env: &'a BTreeMap<String, String>,
    pub(crate) folder: &'a Path,
    pub(crate) limit: Duration,
    pub(crate) run_as: Option<RunAs>,
    /// Where to note the running process, so that the next agent finds it if this one is killed.
    pub(crate) note: Option<PathBuf>,
}

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
    /// The machine's fault: no pipe, no process number.
    #[error("cannot watch {}", path.display())]
    Watch { path: PathBuf, source: io::Error },
}

/// The environment in which every program of a release starts; nothing else is inherited.
pub(crate) fn base_environment() -> BTreeMap<String, String> {
    let inherited = ["PATH", "HOME", "LANG", "TZ", "TMPDIR"];
    let mut env: BTreeMap<String, String> = inherited
        .iter()
        .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)))
        .collect();
    env.entry("PATH".to_owned()).or_insert_with(|| "/usr/local/bin:/usr/bin:/bin".to_owned());
    env
}

/// Kills the group if the future that waits for it is dropped.
struct KillOnDrop<'a>(Option<&'a GroupChild>);

impl Drop for KillOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(child) = self.0 {
            child.watched().signal_group(Signal::KILL);
        }
    }
}

/// Runs a program; its output goes to `tail`. Dropping the future kills the whole group.
pub(crate) async fn run(program: &Program<'_>, tail: &mut Tail) -> Result<End, ProgramError> {
    let watch = |source| ProgramError::Watch { path: program.path.to_owned(), source };
    let (reader, writer) = io::pipe().map_err(watch)?;
    let mut command = Command::new(program.path);
    command
        .args(program.args)
        .env_clear()
        .envs(program.env)
        .current_dir(program.folder)
        .stdout(writer.try_clone().map_err(watch)?)
        .stderr(writer);
    if let Some(run_as) = program.run_as {
        run_as.apply(&mut command);
    }
    let child = spawn_retrying(&mut command).await.map_err(|source| {
        let path = program.path.to_owned();
        if is_the_programs_fault(&source) {
            ProgramError::Spawn { path, source }
        } else {
            ProgramError::Watch { path, source }
        }
    })?;
    drop(command);
    if let Some(note) = &program.note {
        crate::orphan::note(note, child.watched().pid());
    }
    let mut output = Receiver::from_owned_fd(reader.into()).map_err(watch)?;
    let timed_out = {
        let mut kill_on_drop = KillOnDrop(Some(&child));
        let timed_out = watch_program(&child, program.limit, &mut output, tail).await;
        kill_on_drop.0 = None;
        timed_out
    };
    let exit = child.reap().await.map_err(watch)?;
    if let Some(note) = &program.note {
        crate::orphan::forget(note);
    }
    Ok(if timed_out { End::TimedOut } else { End::Exited(exit) })
}

/// Starts a program; a file written just before can be busy for a moment, because another thread
/// that forked meanwhile still holds it open.
async fn spawn_retrying(command: &mut Command) -> io::Result<GroupChild> {
    const TRIES: u32 = 20;
    let mut pauses = Schedule::new(Duration::from_millis(5), Duration::from_millis(20)).pauses();
    for _ in 1..TRIES {
        match GroupChild::spawn(command) {
            Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {
                tokio::time::sleep(pauses.next_pause()).await;
            }
            result => return result,
        }
    }
    GroupChild::spawn(command)
}

/// Reads output until the program exits. Returns true if it exceeded its time limit and was killed.
async fn watch_program(
    child: &GroupChild,
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
                    let descendants = Descendants::of(child.watched().pid());
                    child.watched().stop_group(Signal::TERM, TERM_GRACE).await;
                    descendants.kill();
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
    // The rest of its output; bounded, because a stray process may keep printing.
    for _ in 0..16 {
        if read_some(output, tail) != Read::Some {
            break;
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
