//! Starting programs of releases: through `cohort confine`, see [`crate::confine`].

use std::ffi::OsString;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::fs::Mode;
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use rustix::process::{Gid, Uid};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::process::Command;

use crate::confine::{COMMAND, Confined, NotStarted, PASSED_MAX, STARTS};
use crate::process::GroupChild;
use crate::program::RunAs;

/// Longest wait until a program has started: a machine under load takes seconds.
const START_MAX: Duration = Duration::from_secs(30);

/// Longest report of a program that has not started, in bytes.
const REPORT_BYTES_MAX: u64 = 64 * 1024;

/// Variables of this prefix are Cohort's own: no release sets them. The wrapper has them too, so
/// that a program is found by them as soon as there is a process.
const OWN_VARIABLES: &str = "COHORT_";

/// A program of Cohort's own, and its first arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Launch {
    pub program: PathBuf,
    /// Arguments, without the program itself.
    pub args: Vec<OsString>,
}

impl Launch {
    /// `cohort confine`, by the program that runs: the same one, even if the file was replaced.
    #[must_use]
    pub fn confine() -> Self {
        Launch { program: "/proc/self/exe".into(), args: vec![COMMAND.into()] }
    }

    /// `cohort confine`, as a program of this crate's, next to a test.
    ///
    /// # Panics
    /// If it is not built.
    #[cfg(any(test, feature = "testing"))]
    #[must_use]
    pub fn confine_for_tests() -> Self {
        let test = std::env::current_exe().expect("tests know their program");
        let built = test.ancestors().nth(2).expect("tests are in target/debug/deps");
        let program = built.join("cohort-host-confine");
        assert!(program.exists(), "{} is missing: cargo build -p cohort-host", program.display());
        Launch { program, args: Vec::new() }
    }

    /// Starts a confined program as the leader of a new session. Its output goes to `output`; its
    /// descriptors from 3 on are `passed`.
    ///
    /// # Errors
    /// An error with a number is the program's own; any other is the machine's.
    pub(crate) async fn start(
        &self,
        confined: &Confined,
        output: OwnedFd,
        passed: &[OwnedFd],
    ) -> io::Result<GroupChild> {
        if let Some(RunAs { uid, gid }) = confined.run_as {
            // So that it may open /dev/stdout by name.
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            rustix::fs::fchown(&output, Some(uid), Some(gid)).map_err(|it| own(it.into()))?;
            // An earlier program may have closed it to its own user.
            let mode = Mode::RUSR | Mode::WUSR;
            rustix::fs::fchmod(&output, mode).map_err(|it| own(it.into()))?;
        }
        let (mut ours, theirs) = UnixStream::pair().map_err(own)?;
        let mut child = self.spawn(confined, theirs, output).map_err(own)?;
        let conversation = async {
            let request = serde_json::to_vec(confined)?;
            let (with_passed, rest) = request.split_at(1);
            send_with(&ours, with_passed, passed)?;
            ours.write_all(rest).await?;
            ours.shutdown().await?;
            let mut report = Vec::new();
            (&mut ours).take(REPORT_BYTES_MAX).read_to_end(&mut report).await?;
            io::Result::Ok(report)
        };
        let report = {
            let mut kill_on_drop = KillOnDrop(Some(&child));
            let report = tokio::time::timeout(START_MAX, conversation).await;
            kill_on_drop.0 = None;
            report
        };
        let late = |_| io::Error::other(format!("it did not start in {START_MAX:?}"));
        if let Err(error) = report.map_err(late).and_then(judge) {
            let _exit = child.reap(None).await;
            return Err(error);
        }
        Ok(child)
    }

    /// The wrapper; its end of the socket is closed here on return.
    fn spawn(
        &self,
        confined: &Confined,
        socket: UnixStream,
        output: OwnedFd,
    ) -> io::Result<GroupChild> {
        let socket = socket.into_std()?;
        // The wrapper waits for its request.
        socket.set_nonblocking(false)?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.args)
            .env_clear()
            .envs(confined.env.iter().filter(|(name, _)| name.starts_with(OWN_VARIABLES)))
            .stdin(Stdio::from(OwnedFd::from(socket)))
            .stdout(output.try_clone()?)
            .stderr(output);
        GroupChild::spawn(&mut command)
    }
}

/// Sends the first byte of a request with descriptors. A new socket has room for it.
fn send_with(socket: &UnixStream, byte: &[u8], passed: &[OwnedFd]) -> io::Result<()> {
    let passed: Vec<BorrowedFd<'_>> = passed.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(PASSED_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !passed.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&passed)) {
        return Err(io::Error::other(format!("more than {PASSED_MAX} descriptors to pass on")));
    }
    sendmsg(socket, &[IoSlice::new(byte)], &mut control, SendFlags::empty())?;
    Ok(())
}

/// Kills a wrapper that has not become its program, if nobody waits for that any more.
struct KillOnDrop<'a>(Option<&'a GroupChild>);

impl Drop for KillOnDrop<'_> {
    fn drop(&mut self) {
        if let Some(child) = self.0 {
            child.watched().kill(None);
        }
    }
}

/// What a wrapper's report means.
fn judge(report: io::Result<Vec<u8>>) -> io::Result<()> {
    let report = report.map_err(own)?;
    if report == STARTS {
        return Ok(());
    }
    if report.is_empty() {
        return Err(io::Error::other("the wrapper ended before its program started"));
    }
    let reason = report.strip_prefix(STARTS).unwrap_or(&report);
    let not_started: NotStarted = serde_json::from_slice(reason).map_err(|it| own(it.into()))?;
    Err(not_started.into())
}

/// Not the program's own.
fn own(error: io::Error) -> io::Error {
    io::Error::other(error)
}
