//! Checks: one probe of a service, and the kind of failure seen.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cohort_base::chain;
use cohort_core::policy::{Check, Probe};
use tokio::net::TcpStream;

use crate::confine::Confined;
use crate::output::Tail;
use crate::process::Exit;
use crate::program::{End, Program, ProgramError, Programs, RunAs, base_environment, run};

/// How much output of an `exec` check is kept, in bytes: a line or two.
const EXEC_OUTPUT_BYTES_MAX: usize = 512;

/// What checks need to know about this server and the release.
#[derive(Debug, Clone, Default)]
pub struct CheckContext {
    /// The value of `{port}` in checks.
    pub(crate) service_port: Option<u16>,
    /// Where `exec` looks up its programs.
    pub(crate) release_folder: Option<PathBuf>,
    /// `COHORT_*` variables for `exec`.
    pub(crate) variables: BTreeMap<String, String>,
    /// The server's own programs, which `exec` may name as `host:NAME`.
    pub(crate) host_programs: Arc<BTreeMap<String, PathBuf>>,
    pub(crate) programs: Arc<Programs>,
    /// The user that `exec` runs the release's programs as.
    pub(crate) run_as: Option<RunAs>,
    pub(crate) home: Option<PathBuf>,
}

/// Why a check did not see a healthy service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum CheckFailure {
    Refused,
    TimedOut,
    /// The service accepted and then closed the connection.
    Reset,
    NameNotFound,
    Unreachable(String),
    NotHttp,
    WrongStatus {
        found: u16,
        expected: u16,
        /// The start of the body.
        body: String,
    },
    WrongHeader {
        name: String,
        found: Option<String>,
        expected: String,
    },
    WrongBody {
        /// The start of the body.
        found: String,
        expected: String,
    },
    /// The program of an `exec` check failed.
    Exited {
        exit: Exit,
        output: String,
    },
    /// The check cannot run on this server: not the release's fault.
    CannotCheck(String),
}

impl CheckFailure {
    pub(crate) fn from_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => CheckFailure::Refused,
            io::ErrorKind::TimedOut => CheckFailure::TimedOut,
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => CheckFailure::Reset,
            _ => CheckFailure::Unreachable(chain(error)),
        }
    }
}

impl fmt::Display for CheckFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckFailure::Refused => write!(f, "connection refused"),
            CheckFailure::TimedOut => write!(f, "no response in time"),
            CheckFailure::Reset => write!(f, "connection closed before a response"),
            CheckFailure::NameNotFound => write!(f, "host name not found"),
            CheckFailure::Unreachable(why) => write!(f, "unreachable: {why}"),
            CheckFailure::NotHttp => write!(f, "not an HTTP response"),
            CheckFailure::WrongStatus { found, expected, body } => {
                write!(f, "status {found}, expected {expected}; body: `{body}`")
            }
            CheckFailure::WrongHeader { name, found, expected } => {
                let found = found.as_deref().unwrap_or("missing");
                write!(f, "header {name} is {found}, expected `{expected}` in it")
            }
            CheckFailure::WrongBody { found, expected } => {
                write!(f, "no `{expected}` in the body, which starts with `{found}`")
            }
            CheckFailure::Exited { exit, output } => write!(f, "{exit}: {output}"),
            CheckFailure::CannotCheck(why) => write!(f, "cannot check: {why}"),
        }
    }
}

/// A check's name for people: its kind and its target on this server.
pub(crate) fn check_name(check: &Check, context: &CheckContext) -> String {
    let name = match &check.probe {
        Probe::Tcp { address } => format!("tcp {address}"),
        Probe::Http { url, .. } => format!("http {url}"),
        Probe::Exec { command, .. } => format!("exec {command}"),
    };
    fill_in(&name, context.service_port).unwrap_or(name)
}

/// Runs the check once.
pub(crate) async fn look(check: &Check, context: &CheckContext) -> Result<(), CheckFailure> {
    let limit = Duration::from_millis(check.timeout.ms);
    match &check.probe {
        Probe::Tcp { address } => {
            let address = context.fill_in(address)?;
            within(limit, async { connect(&address).await.map(drop) }).await
        }
        Probe::Http { url, expect_status, expect_body, expect_header } => {
            let expected = crate::check_http::Expected {
                status: expect_status.unwrap_or(200),
                body: expect_body.as_deref(),
                headers: expect_header,
            };
            let url = context.fill_in(url)?;
            within(limit, crate::check_http::look(&url, &expected)).await
        }
        Probe::Exec { command, args } => exec(command, args, limit, context).await,
    }
}

async fn within(
    limit: Duration,
    look: impl Future<Output = Result<(), CheckFailure>>,
) -> Result<(), CheckFailure> {
    tokio::time::timeout(limit, look).await.unwrap_or(Err(CheckFailure::TimedOut))
}

/// Connects to `host:port`, trying each of its addresses in turn.
pub(crate) async fn connect(address: &str) -> Result<TcpStream, CheckFailure> {
    let found = tokio::net::lookup_host(address).await;
    let mut failure = CheckFailure::NameNotFound;
    for address in found.map_err(|_| CheckFailure::NameNotFound)? {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = CheckFailure::from_io(&error),
        }
    }
    Err(failure)
}

impl CheckContext {
    fn fill_in(&self, text: &str) -> Result<String, CheckFailure> {
        fill_in(text, self.service_port).map_err(|error| CheckFailure::CannotCheck(chain(&error)))
    }

    /// The path of an `exec` check's program: in the release, or on the server's own list.
    fn program(&self, command: &str) -> Result<(PathBuf, Owner), CheckFailure> {
        let cannot = |why: String| CheckFailure::CannotCheck(why);
        if let Some(name) = command.strip_prefix("host:") {
            let path = self.host_programs.get(name).ok_or_else(|| {
                cannot(format!("`{name}` is not one of this server's `exec_programs`"))
            })?;
            return Ok((path.clone(), Owner::Server));
        }
        let folder = self
            .release_folder
            .as_ref()
            .ok_or_else(|| cannot("no release is installed".to_owned()))?;
        let inside = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
        if command.is_empty() || !Path::new(command).components().all(inside) {
            return Err(cannot(format!("`{command}` is not a path inside the release")));
        }
        Ok((folder.join(command), Owner::Release))
    }
}

/// Owner of an `exec` check's program: the server's own programs run as the agent's user.
#[derive(PartialEq, Eq)]
enum Owner {
    Release,
    Server,
}

#[derive(Debug, thiserror::Error)]
#[error("`{{port}}` is used, but this server has no `service_port`")]
pub(crate) struct NoPort;

/// Replaces `{port}` by the server's port.
pub(crate) fn fill_in(text: &str, port: Option<u16>) -> Result<String, NoPort> {
    if !text.contains("{port}") {
        return Ok(text.to_owned());
    }
    Ok(text.replace("{port}", &port.ok_or(NoPort)?.to_string()))
}

async fn exec(
    command: &str,
    args: &[String],
    limit: Duration,
    context: &CheckContext,
) -> Result<(), CheckFailure> {
    let (path, owner) = context.program(command)?;
    let args: Vec<String> =
        args.iter().map(|arg| context.fill_in(arg)).collect::<Result<_, _>>()?;
    let is_releases = owner == Owner::Release;
    let mut env = base_environment(context.home.as_deref().filter(|_| is_releases));
    env.extend(context.variables.clone());
    let folder = match (is_releases, &context.release_folder) {
        (true, Some(folder)) => folder.clone(),
        _ => PathBuf::from("/"),
    };
    // The server's own programs run as the agent, with all that it may do.
    let run_as = context.run_as.filter(|_| is_releases);
    let confined =
        Confined { args, env, run_as, gains: !is_releases, ..Confined::new(path, folder) };
    let program = Program { programs: &context.programs, confined, limit, note: None };
    let mut tail = Tail::new(EXEC_OUTPUT_BYTES_MAX);
    match run(&program, &mut tail).await {
        Ok(End::Exited(Exit::Status(0))) => Ok(()),
        Ok(End::Exited(exit)) => {
            let output = tail.text().trim().to_owned();
            Err(CheckFailure::Exited { exit, output })
        }
        Ok(End::TimedOut) => Err(CheckFailure::TimedOut),
        Err(error @ ProgramError::Spawn { .. }) => {
            let exit = Exit::NotStarted { reason: chain(&error) };
            Err(CheckFailure::Exited { exit, output: String::new() })
        }
        Err(error @ ProgramError::Watch { .. }) => Err(CheckFailure::CannotCheck(chain(&error))),
    }
}

#[cfg(test)]
#[path = "check_test.rs"]
mod check_test;
