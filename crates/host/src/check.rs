//! Checks: one look at a service, and what kind of failure it saw.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cohort_core::policy::{Check, Probe};
use tokio::net::TcpStream;

use crate::output::Tail;
use crate::program::{End, Program, ProgramError, RunAs, base_environment, run};

/// Output of an `exec` check that is kept: a line or two for a person.
const EXEC_OUTPUT_BYTES_MAX: usize = 512;

/// What checks need to know of this server and of the release that they look at.
#[derive(Debug, Clone, Default)]
pub struct CheckContext {
    /// Stands for `{port}`.
    pub service_port: Option<u16>,
    /// The release's folder, where `exec` finds its programs.
    pub release_folder: Option<PathBuf>,
    /// `COHORT_*` variables for `exec`.
    pub variables: BTreeMap<String, String>,
    /// Programs of the server's own that `exec` may name as `host:NAME`.
    pub host_programs: Arc<BTreeMap<String, PathBuf>>,
    /// As whom `exec` runs programs of the release.
    pub run_as: Option<RunAs>,
}

/// What a check saw instead of health.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CheckFailure {
    /// Nobody listens.
    Refused,
    /// No answer in time.
    TimedOut,
    /// Somebody listened and hung up.
    Reset,
    /// The name leads nowhere.
    NameNotFound,
    /// No way there.
    Unreachable(String),
    /// An answer, but not the right one.
    WrongAnswer(String),
    /// The check itself cannot be made on this server.
    CannotCheck(String),
}

impl CheckFailure {
    /// A word for metrics.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            CheckFailure::Refused => "refused",
            CheckFailure::TimedOut => "timed_out",
            CheckFailure::Reset => "reset",
            CheckFailure::NameNotFound => "name_not_found",
            CheckFailure::Unreachable(_) => "unreachable",
            CheckFailure::WrongAnswer(_) => "wrong_answer",
            CheckFailure::CannotCheck(_) => "cannot_check",
        }
    }

    pub(crate) fn from_io(error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::ConnectionRefused => CheckFailure::Refused,
            io::ErrorKind::TimedOut => CheckFailure::TimedOut,
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::UnexpectedEof => CheckFailure::Reset,
            _ => CheckFailure::Unreachable(error.to_string()),
        }
    }
}

impl fmt::Display for CheckFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CheckFailure::Refused => write!(f, "connection refused"),
            CheckFailure::TimedOut => write!(f, "no answer in time"),
            CheckFailure::Reset => write!(f, "connection closed before an answer"),
            CheckFailure::NameNotFound => write!(f, "the host's name was not found"),
            CheckFailure::Unreachable(why) => write!(f, "not reachable: {why}"),
            CheckFailure::WrongAnswer(what) => write!(f, "wrong answer: {what}"),
            CheckFailure::CannotCheck(why) => write!(f, "the check cannot be made: {why}"),
        }
    }
}

/// A check's name for people: its kind and what it looks at.
#[must_use]
pub fn check_name(check: &Check) -> String {
    match &check.probe {
        Probe::Tcp { address } => format!("tcp {address}"),
        Probe::Http { url, .. } => format!("http {url}"),
        Probe::Exec { command, .. } => format!("exec {command}"),
    }
}

/// Looks once.
///
/// # Errors
/// What it saw instead of health.
pub async fn look(check: &Check, context: &CheckContext) -> Result<(), CheckFailure> {
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

/// Connects to `host:port`, to each of its addresses in turn.
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
    /// Puts the server's port in.
    pub(crate) fn fill_in(&self, text: &str) -> Result<String, CheckFailure> {
        fill_in(text, self.service_port).map_err(CheckFailure::CannotCheck)
    }

    /// Where an `exec` check's program is: in the release, or on the server's own list.
    fn program(&self, command: &str) -> Result<(PathBuf, bool), String> {
        if let Some(name) = command.strip_prefix("host:") {
            return match self.host_programs.get(name) {
                Some(path) => Ok((path.clone(), true)),
                None => Err(format!("`{name}` is not on this server's list of programs")),
            };
        }
        let folder = self.release_folder.as_ref().ok_or("no release is installed")?;
        let inside = |c: Component<'_>| matches!(c, Component::Normal(_) | Component::CurDir);
        if command.is_empty() || !Path::new(command).components().all(inside) {
            return Err(format!("`{command}` is no path within the release"));
        }
        Ok((folder.join(command), false))
    }
}

/// Puts the server's port into a text.
pub(crate) fn fill_in(text: &str, port: Option<u16>) -> Result<String, String> {
    if !text.contains("{port}") {
        return Ok(text.to_owned());
    }
    let port = port.ok_or("`{port}` is used, but `service_port` is not set on this server")?;
    Ok(text.replace("{port}", &port.to_string()))
}

async fn exec(
    command: &str,
    args: &[String],
    limit: Duration,
    context: &CheckContext,
) -> Result<(), CheckFailure> {
    let (path, own) = context.program(command).map_err(CheckFailure::CannotCheck)?;
    let args: Vec<String> =
        args.iter().map(|arg| context.fill_in(arg)).collect::<Result<_, _>>()?;
    let mut env = base_environment();
    env.extend(context.variables.clone());
    let folder = match &context.release_folder {
        Some(folder) if !own => folder.as_path(),
        _ => Path::new("/"),
    };
    let program = Program {
        path: &path,
        args: &args,
        env: &env,
        folder,
        limit,
        run_as: context.run_as.filter(|_| !own),
        note: None,
    };
    let mut tail = Tail::new(EXEC_OUTPUT_BYTES_MAX);
    match run(&program, &mut tail).await {
        Ok(End::Exit(0)) => Ok(()),
        Ok(End::Exit(code)) => {
            Err(CheckFailure::WrongAnswer(format!("exit status {code}: {}", tail.text().trim())))
        }
        Ok(End::Signal(number)) => {
            Err(CheckFailure::WrongAnswer(format!("ended by signal {number}")))
        }
        Ok(End::TimedOut) => Err(CheckFailure::TimedOut),
        Err(error @ ProgramError::Spawn { .. }) => {
            Err(CheckFailure::WrongAnswer(crate::output::chain(&error)))
        }
        Err(error @ ProgramError::Watch { .. }) => {
            Err(CheckFailure::CannotCheck(crate::output::chain(&error)))
        }
    }
}

#[cfg(test)]
#[path = "check_test.rs"]
mod check_test;
