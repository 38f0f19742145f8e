//! The agent's side of the guard's socket; starts a guard when there is none.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::SOCKET;
use super::protocol::{Answer, Ask, Request, Response, VERSION, read_line, write_line};
use crate::service::{ServiceControl, ServiceError, ServiceSpec, ServiceStatus};

/// How long an answer may take that needs no stop.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// How long a guard may take until it listens. A machine with forty of them and two cores has been
/// seen to take seconds.
const LAUNCH_MAX: Duration = Duration::from_secs(15);

/// How long after one that ended before it listened another is started.
const LAUNCH_AGAIN: Duration = Duration::from_millis(200);

/// What a stop may take beyond the service's own limit.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// Longest path of a unix socket that the kernel takes, less one.
const SOCKET_PATH_BYTES_MAX: usize = 107;

const WHO: &str = "the guard";

/// How a guard is started: a program and its arguments, such as `cohort guard --dir …`.
#[derive(Debug, Clone)]
pub struct GuardLaunch {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
}

/// Speaks to the guard of one folder.
#[derive(Debug)]
pub struct GuardClient {
    folder: PathBuf,
    launch: Option<GuardLaunch>,
    launching: tokio::sync::Mutex<()>,
}

/// The socket's path, short enough for the kernel: through the open folder when it is long.
pub(super) fn short_path(folder: &File, path: &Path) -> PathBuf {
    if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        path.to_owned()
    } else {
        Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(SOCKET)
    }
}

impl GuardClient {
    /// Speaks to the guard of `folder`, and starts one by `launch` when none listens.
    #[must_use]
    pub fn new(folder: PathBuf, launch: Option<GuardLaunch>) -> Self {
        GuardClient { folder, launch, launching: tokio::sync::Mutex::new(()) }
    }

    /// Sees to it that a guard runs. Harmless to repeat.
    ///
    /// # Errors
    /// When none runs and none can be started.
    pub async fn ensure(&self) -> Result<(), ServiceError> {
        self.connect().await.map(drop)
    }

    /// Stops every service and the guard. No error when there is none.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn shutdown(&self, at_most: Duration) -> Result<(), ServiceError> {
        match self.dial().await {
            Ok(stream) => {
                let request = Request { version: VERSION, ask: Ask::Shutdown };
                judge(converse(stream, &request, at_most).await).map(drop)
            }
            Err(_) => Ok(()),
        }
    }

    /// The services that are to run.
    ///
    /// # Errors
    /// When the guard does not answer.
    pub async fn list(&self) -> Result<Vec<String>, ServiceError> {
        match self.ask(Ask::List, ANSWER_MAX).await? {
            Answer::Names(names) => Ok(names),
            answer => Err(unexpected(&answer)),
        }
    }

    /// Asks, and once more when the guard went away meanwhile: nothing that is asked of it does
    /// harm when it is done twice.
    async fn ask(&self, ask: Ask, at_most: Duration) -> Result<Answer, ServiceError> {
        let request = Request { version: VERSION, ask };
        let answer = match converse(self.connect().await?, &request, at_most).await {
            Err(Lost::Connection(error)) => {
                tracing::debug!(%error, "the guard went away; asking the next one");
                converse(self.connect().await?, &request, at_most).await
            }
            answer => answer,
        };
        judge(answer)
    }

    async fn dial(&self) -> io::Result<UnixStream> {
        let folder = File::open(&self.folder)?;
        UnixStream::connect(short_path(&folder, &self.folder.join(SOCKET))).await
    }

    async fn connect(&self) -> Result<UnixStream, ServiceError> {
        let error = match self.dial().await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        let Some(launch) = &self.launch else { return Err(unreachable(error)) };
        let _one_at_a_time = self.launching.lock().await;
        if let Ok(stream) = self.dial().await {
            return Ok(stream);
        }
        let start = || {
            self.start(launch).map_err(|error| {
                unreachable(format!("{} cannot be started: {error}", launch.program.display()))
            })
        };
        let mut launched = start()?;
        let deadline = Instant::now() + LAUNCH_MAX;
        loop {
            match self.dial().await {
                Ok(stream) => return Ok(stream),
                Err(error) if Instant::now() > deadline => return Err(unreachable(error)),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
            // A killed guard holds its lock until its last thread is gone: the next one ends at
            // once when it comes too early.
            if launched.is_finished() {
                tokio::time::sleep(LAUNCH_AGAIN).await;
                launched = start()?;
            }
        }
    }

    /// Starts a guard; the thread ends with it.
    fn start(&self, launch: &GuardLaunch) -> io::Result<std::thread::JoinHandle<()>> {
        std::fs::create_dir_all(&self.folder)?;
        let log =
            OpenOptions::new().create(true).append(true).open(self.folder.join("guard.log"))?;
        let mut child = std::process::Command::new(&launch.program)
            .args(&launch.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        // It outlives this process, or is reaped here; a thread sleeps until then.
        let reaper = std::thread::Builder::new().name("guard-reaper".into());
        reaper.stack_size(64 * 1024).spawn(move || {
            let _status = child.wait();
        })
    }
}

/// Why there was no answer.
enum Lost {
    Connection(io::Error),
    Time,
}

async fn converse(
    mut stream: UnixStream,
    request: &Request,
    at_most: Duration,
) -> Result<Response, Lost> {
    let exchange = async {
        write_line(&mut stream, request).await?;
        let line = read_line(&mut BufReader::new(&mut stream)).await?;
        let line = line.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        Ok(serde_json::from_slice(&line)?)
    };
    match tokio::time::timeout(at_most, exchange).await {
        Ok(answered) => answered.map_err(Lost::Connection),
        Err(_) => Err(Lost::Time),
    }
}

fn judge(answer: Result<Response, Lost>) -> Result<Answer, ServiceError> {
    match answer {
        Ok(Response { answer: Answer::CannotStart(reason), .. }) => {
            Err(ServiceError::Start(reason))
        }
        Ok(Response { answer: Answer::Refused(reason), .. }) => {
            Err(ServiceError::Failed { what: WHO, reason })
        }
        Ok(Response { answer, .. }) => Ok(answer),
        Err(Lost::Connection(error)) => Err(unreachable(error)),
        Err(Lost::Time) => Err(unreachable("it did not answer in time")),
    }
}

#[expect(clippy::needless_pass_by_value, reason = "given to `map_err`")]
fn unreachable(reason: impl ToString) -> ServiceError {
    ServiceError::Unreachable { what: WHO, reason: reason.to_string() }
}

fn unexpected(answer: &Answer) -> ServiceError {
    ServiceError::Failed { what: WHO, reason: format!("an unexpected answer: {answer:?}") }
}

#[async_trait]
impl ServiceControl for GuardClient {
    async fn start(&self, spec: &ServiceSpec) -> Result<(), ServiceError> {
        // Stopping what ran before may be part of it.
        let at_most = ANSWER_MAX + Duration::from_secs(60);
        match self.ask(Ask::Start(spec.clone()), at_most).await? {
            Answer::Done => Ok(()),
            answer => Err(unexpected(&answer)),
        }
    }

    async fn stop(&self, name: &str, at_most: Duration) -> Result<(), ServiceError> {
        match self.ask(Ask::Stop { name: name.to_owned() }, at_most + STOP_MARGIN).await? {
            Answer::Done => Ok(()),
            answer => Err(unexpected(&answer)),
        }
    }

    async fn status(&self, name: &str) -> Result<ServiceStatus, ServiceError> {
        match self.ask(Ask::Status { name: name.to_owned() }, ANSWER_MAX).await? {
            Answer::Status(status) => Ok(status),
            answer => Err(unexpected(&answer)),
        }
    }
}
