//! What a program of a release may do on its server.
//!
//! The guard and the agent start nothing of a release themselves. They start `cohort confine`,
//! which reads a [`Confined`] from its standard input, gives up what the program must not have, one
//! step after the other in a process with a single thread, and becomes the program. Its standard
//! input is a socket: if it cannot become the program, it says why there; otherwise the socket
//! closes.
//!
//! The wrapper is root until it gives that up, so it gets nothing that a release wrote in its
//! environment: `LD_PRELOAD` would load a release's code into it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, IoSliceMut, Read as _, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{IntoRawFd as _, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::io::FdFlags;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::process::{Gid, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};
use serde::{Deserialize, Serialize};

use crate::isolation::Isolation;
use crate::program::RunAs;

/// The argument of the `cohort` binary that makes it a wrapper.
pub const COMMAND: &str = "confine";

/// Longest request, in bytes: as the guard's longest.
const REQUEST_BYTES_MAX: u64 = 256 * 1024;

/// The highest capability that is asked for; the kernel knows 41.
const CAPABILITY_MAX: u32 = 63;

/// Most descriptors that a program is given besides its output.
pub(crate) const PASSED_MAX: usize = 16;

/// The first descriptor that a program is given, and one above all of them.
const PASSED_FROM: i32 = 3;
const PASSED_BELOW: i32 = 64;

/// The variable that tells a program that descriptors are meant for it.
const LISTEN_PID: &str = "LISTEN_PID";

/// A program written just before can be busy for a moment, because another thread that forked
/// meanwhile still holds it open for writing.
const BUSY_TRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// What a wrapper says before it becomes its program. A reason after it: it did not.
pub(crate) const STARTS: &[u8] = b".";

/// The exit status of a wrapper that did not become its program, as a shell's.
const NOT_STARTED: i32 = 127;

/// A capability that a release may ask for in `[service] capabilities`: none of them reaches
/// another user's files, processes or traffic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Capability {
    /// Ports below 1024.
    CapNetBindService,
    /// Memory that is never swapped.
    CapIpcLock,
}

impl Capability {
    fn set(self) -> CapabilitySet {
        match self {
            Capability::CapNetBindService => CapabilitySet::NET_BIND_SERVICE,
            Capability::CapIpcLock => CapabilitySet::IPC_LOCK,
        }
    }
}

/// A program, and what it is confined to. Without a version: starter and wrapper are one program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Confined {
    /// A name without `/` is looked up in the `PATH` of `env`.
    pub(crate) program: PathBuf,
    pub(crate) args: Vec<String>,
    /// The whole environment.
    pub(crate) env: BTreeMap<String, String>,
    pub(crate) folder: PathBuf,
    /// If absent, the starter's own user.
    pub(crate) run_as: Option<RunAs>,
    /// What it keeps of root's capabilities as another user.
    pub(crate) capabilities: Vec<Capability>,
    /// It joins these cgroups first.
    pub(crate) cgroups: Vec<PathBuf>,
    /// What it sees of the file system.
    pub(crate) isolation: Isolation,
    /// Whether it may gain privileges by running a program, such as sudo: the server's own may.
    pub(crate) gains: bool,
}

impl Confined {
    /// A program of a release, without arguments.
    pub(crate) fn new(program: PathBuf, folder: PathBuf) -> Self {
        Confined {
            program,
            args: Vec::new(),
            env: BTreeMap::new(),
            folder,
            run_as: None,
            capabilities: Vec::new(),
            cgroups: Vec::new(),
            isolation: Isolation::default(),
            gains: false,
        }
    }
}

/// Why a wrapper did not become its program.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct NotStarted {
    /// What it tried.
    tried: String,
    reason: String,
    /// The error number of starting the program itself.
    errno: Option<i32>,
}

impl From<NotStarted> for io::Error {
    fn from(NotStarted { tried, reason, errno }: NotStarted) -> Self {
        match errno {
            Some(errno) => io::Error::from_raw_os_error(errno),
            None => io::Error::other(format!("{tried}: {reason}")),
        }
    }
}

/// A step that failed, and whether it was the program's own.
struct Failed {
    tried: &'static str,
    error: io::Error,
    program: bool,
}

fn step<T>(tried: &'static str, result: Result<T, impl Into<io::Error>>) -> Result<T, Failed> {
    result.map_err(|error| Failed { tried, error: error.into(), program: false })
}

/// Becomes the program that standard input asks for. Returns the exit status if it cannot. For a
/// process with one thread.
#[must_use]
pub fn run() -> i32 {
    // Without a terminal that somebody's shell reads from. Fails for a leader of a group, which has
    // none of its own either.
    let _leads = rustix::process::setsid();
    let socket = match take_stdin() {
        Ok(socket) => socket,
        Err(error) => {
            eprintln!("cannot take a request from standard input: {error}");
            return NOT_STARTED;
        }
    };
    keep_descriptors();
    let mut socket = File::from(socket);
    let became =
        read(&mut socket).and_then(|(confined, passed)| become_it(&confined, passed, &mut socket));
    let Failed { tried, error, program } = match became {
        Ok(never) => match never {},
        Err(failed) => failed,
    };
    let (reason, errno) = (cohort_base::chain(&error), error.raw_os_error().filter(|_| program));
    let failed = NotStarted { tried: tried.to_owned(), reason, errno };
    // A starter that has gone needs no answer.
    let _ = serde_json::to_vec(&failed).map(|bytes| socket.write_all(&bytes));
    NOT_STARTED
}

/// Keeps whatever this process was started with and left open from the programs that it starts.
pub fn keep_descriptors() {
    close_fds::set_fds_cloexec(rustix::stdio::raw_stderr() + 1, &[]);
}

/// Standard input, which programs that are started do not get; they get an empty one.
fn take_stdin() -> io::Result<OwnedFd> {
    let socket = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), PASSED_BELOW)?;
    rustix::stdio::dup2_stdin(File::open("/dev/null")?)?;
    Ok(socket)
}

/// The request, and the descriptors that came with its first byte.
fn read(socket: &mut File) -> Result<(Confined, Vec<OwnedFd>), Failed> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PASSED_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut bytes = vec![0];
    let mut first = [IoSliceMut::new(&mut bytes)];
    let received = recvmsg(&*socket, &mut first, &mut control, RecvFlags::CMSG_CLOEXEC);
    step("read the request", received)?;
    let mut passed = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            passed.extend(descriptors);
        }
    }
    step("read the request", socket.take(REQUEST_BYTES_MAX).read_to_end(&mut bytes))?;
    Ok((step("read the request", serde_json::from_slice(&bytes))?, passed))
}

/// Gives the program its descriptors, from 3 on in their order.
fn place(passed: Vec<OwnedFd>) -> io::Result<()> {
    let away = |fd: &OwnedFd| rustix::io::fcntl_dupfd_cloexec(fd, PASSED_BELOW);
    let moved: Vec<OwnedFd> = passed.iter().map(away).collect::<Result<_, _>>()?;
    drop(passed);
    for (fd, number) in moved.iter().zip(PASSED_FROM..) {
        let placed = rustix::io::fcntl_dupfd_cloexec(fd, number)?;
        rustix::io::fcntl_setfd(&placed, FdFlags::empty())?;
        if placed.into_raw_fd() != number {
            return Err(io::Error::other(format!("descriptor {number} is in use")));
        }
    }
    Ok(())
}

fn become_it(
    confined: &Confined,
    passed: Vec<OwnedFd>,
    socket: &mut File,
) -> Result<std::convert::Infallible, Failed> {
    let Confined { program, args, env, folder, .. } = confined;
    let Confined { run_as, capabilities, cgroups, isolation, gains, .. } = confined;
    for cgroup in cgroups {
        step("enter its cgroup", std::fs::write(cgroup.join("cgroup.procs"), "0"))?;
    }
    step("separate its file system", isolation.enter())?;
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
    if let Some(run_as) = run_as {
        become_user(*run_as, capabilities)?;
    }
    if !gains {
        if !rustix::process::geteuid().is_root() {
            keep_only(run_as.map_or(&[][..], |_| capabilities))?;
        }
        step("give up gaining privileges", rustix::thread::set_no_new_privs(true))?;
    }
    step("enter its directory as its user", std::env::set_current_dir(folder))?;
    let mut command = std::process::Command::new(program);
    command.args(args).env_clear().envs(env);
    if !passed.is_empty() {
        command.env(LISTEN_PID, std::process::id().to_string());
    }
    step("pass on descriptors", place(passed))?;
    step("say that it starts", socket.write_all(STARTS))?;
    let mut error = command.exec();
    for _ in 1..BUSY_TRIES {
        if error.kind() != io::ErrorKind::ExecutableFileBusy {
            break;
        }
        // This process has one thread, no runtime, and nothing else to do.
        std::thread::sleep(BUSY_PAUSE);
        error = command.exec();
    }
    Err(Failed { tried: "start the program", error, program: true })
}

/// Keeps these capabilities and no others. The kernel takes them from a user that was root, and
/// from nobody else: an agent may have some as another user.
fn keep_only(capabilities: &[Capability]) -> Result<(), Failed> {
    let kept = set_of(capabilities);
    step("give up capabilities", rustix::thread::clear_ambient_capability_set())?;
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: kept };
    step("give up capabilities", rustix::thread::set_capabilities(None, sets))?;
    for one in kept.iter() {
        let raised = rustix::thread::configure_capability_in_ambient_set(one, true);
        step("keep capabilities", raised)?;
    }
    Ok(())
}

fn set_of(capabilities: &[Capability]) -> CapabilitySet {
    capabilities.iter().fold(CapabilitySet::empty(), |set, one| set | one.set())
}

/// Becomes another user, without root's groups and with a bounding set of these capabilities.
fn become_user(run_as: RunAs, capabilities: &[Capability]) -> Result<(), Failed> {
    let kept = set_of(capabilities);
    let effective = step("read its capabilities", rustix::thread::capabilities(None))?.effective;
    if effective.contains(CapabilitySet::SETPCAP) {
        for number in 0..=CAPABILITY_MAX {
            let one = CapabilitySet::from_bits_retain(1 << number);
            // An unknown number ends the list.
            let remove = rustix::thread::remove_capability_from_bounding_set;
            if !kept.contains(one) && remove(one).is_err() {
                break;
            }
        }
    }
    let (uid, gid) = (Uid::from_raw(run_as.uid), Gid::from_raw(run_as.gid));
    if effective.contains(CapabilitySet::SETGID) {
        step("leave root's groups", rustix::thread::set_thread_groups(&[]))?;
    }
    step("set its group", rustix::thread::set_thread_res_gid(gid, gid, gid))?;
    step("keep capabilities", rustix::thread::set_keep_capabilities(!kept.is_empty()))?;
    step("set its user", rustix::thread::set_thread_res_uid(uid, uid, uid))
}

#[cfg(test)]
#[path = "confine_test.rs"]
mod confine_test;
