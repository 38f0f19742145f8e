//! The agent's side of the guard's socket. Starts a guard when none is listening.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use async_trait::async_trait;
use cohort_base::retry::Schedule;
use cohort_base::{Cause, OnPath as _, durable};
use futures_util::StreamExt as _;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::protocol::{
    Answer, Ask, Request, Response, SOCKET, VERSION, broken, lines, send, short_path,
};
use crate::launch::Launch;
use crate::service::{ServiceControl, ServiceError, ServiceSpec, ServiceStatus};

/// Longest wait for a response to a request that involves no stop.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Longest wait for a start, which may include a stop.
const START_MAX: Duration = Duration::from_secs(120);

/// Longest wait until a guard listens. With forty of them on two cores, it takes seconds.
const LAUNCH_MAX: Duration = Duration::from_secs(15);

/// Pauses between attempts to connect to a guard that was just started.
const LAUNCH_LOOK: Schedule = Schedule::new(Duration::from_millis(20), Duration::from_millis(200));

/// Extra time for a stop, beyond the service's own limit: what was killed may not end.
const STOP_MARGIN: Duration = Duration::from_secs(30);

/// Talks to the guard of one directory.
#[derive(Debug)]
pub struct GuardClient {
    folder: PathBuf,
    launch: Option<Launch>,
    launching: tokio::sync::Mutex<()>,
}

impl GuardClient {
    /// A client for the guard of `folder`. `launch` starts one, such as `cohort guard --dir …`;
    /// without it, none is started.
    #[must_use]
    pub fn new(folder: PathBuf, launch: Option<Launch>) -> Self {
        GuardClient { folder, launch, launching: tokio::sync::Mutex::new(()) }
    }

    /// Sends a request; if the guard goes away meanwhile, sends it to the next one: every request
    /// may be repeated.
    async fn ask(&self, ask: Ask, at_most: Duration) -> Result<Answer, ServiceError> {
        let request = Request { version: VERSION, ask };
        let mut answer = converse(self.connect().await?, &request, at_most).await;
        if let Err(error) = &answer
            && error.kind() != io::ErrorKind::TimedOut
        {
            tracing::debug!(%error, "guard went away, asking the next one");
            answer = converse(self.connect().await?, &request, at_most).await;
        }
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
        let mut guard: Option<std::thread::JoinHandle<()>> = None;
        let mut pauses = LAUNCH_LOOK.pauses();
        let deadline = Instant::now() + LAUNCH_MAX;
        loop {
            match self.dial().await {
                Ok(stream) => return Ok(stream),
                Err(error) if Instant::now() > deadline => return Err(unreachable(error)),
                Err(_) => {}
            }
            // A killed guard holds its lock until its last thread is gone. A guard started before
            // that exits immediately, and is started again.
            if guard.as_ref().is_none_or(|guard| guard.is_finished()) {
                let started = self.start(launch).on_path("start", &launch.program);
                guard = Some(started.map_err(unreachable)?);
            }
            tokio::time::sleep(pauses.next_pause()).await;
        }
    }

    /// Starts a guard; the returned thread ends with it.
    fn start(&self, launch: &Launch) -> io::Result<std::thread::JoinHandle<()>> {
        durable::private_folder(&self.folder)?;
        let log =
            OpenOptions::new().create(true).append(true).open(self.folder.join("guard.log"))?;
        let mut child = std::process::Command::new(&launch.program)
            .args(&launch.args)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        // The guard outlives this process, or is reaped here.
        let reaper = std::thread::Builder::new().name("guard-reaper".into());
        reaper.stack_size(64 * 1024).spawn(move || {
            let _status = child.wait();
        })
    }
}

async fn converse(
    stream: UnixStream,
    request: &Request,
    at_most: Duration,
) -> io::Result<Response> {
    let exchange = async {
        let mut lines = lines(stream);
        send(&mut lines, request).await?;
        let line = lines.next().await.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(serde_json::from_str(&line.map_err(broken)?)?)
    };
    let in_time = tokio::time::timeout(at_most, exchange).await;
    in_time.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

fn judge(answer: io::Result<Response>) -> Result<Answer, ServiceError> {
    match answer.map_err(unreachable)?.answer {
        Answer::CannotStart(reason) => Err(ServiceError::Start { reason }),
        Answer::Taken(reason) => Err(ServiceError::Taken { reason }),
        Answer::Refused(reason) => Err(failed(reason)),
        answer => Ok(answer),
    }
}

fn done(answer: Answer) -> Result<(), ServiceError> {
    match answer {
        Answer::Done => Ok(()),
        answer => Err(failed(format!("unexpected answer: {answer:?}"))),
    }
}

fn unreachable(source: impl Into<Cause>) -> ServiceError {
    ServiceError::Unreachable { manager: "the guard", source: source.into() }
}

fn failed(source: impl Into<Cause>) -> ServiceError {
    ServiceError::Failed { manager: "the guard", source: source.into() }
}

#[async_trait]
impl ServiceControl for GuardClient {
    async fn start(&self, spec: &ServiceSpec) -> Result<(), ServiceError> {
        done(self.ask(Ask::Start(Box::new(spec.clone())), START_MAX).await?)
    }

    async fn stop(&self, name: &str, at_most: Duration) -> Result<(), ServiceError> {
        done(self.ask(Ask::Stop { name: name.to_owned() }, at_most + STOP_MARGIN).await?)
    }

    async fn status(&self, name: &str) -> Result<ServiceStatus, ServiceError> {
        match self.ask(Ask::Status { name: name.to_owned() }, ANSWER_MAX).await? {
            Answer::Status(status) => Ok(status),
            answer => Err(failed(format!("unexpected answer: {answer:?}"))),
        }
    }
}
