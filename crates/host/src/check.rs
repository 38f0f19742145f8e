//! Checks: one probe of a service, and the kind of failure seen.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cohort_base::chain;
use cohort_core::ids::{CheckName, ProgramName, Version};
use cohort_core::policy::{Check, PortAt, Probe, TcpProbe};
use cohort_core::report::Blame;
use futures_util::future::join_all;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use crate::check_exec::{HostProgram, ReleaseChecks};
use crate::inside::Inside;
use crate::own_values::OwnValues;
use crate::process::Exit;
use crate::program::{Programs, RunAs};

/// How much of an answer is read, in bytes. 64 KiB: a status page, not a download.
pub(crate) const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How much of a wrong answer is quoted.
const QUOTED_CHARS_MAX: usize = 120;

/// What checks need to know about this server and the release.
#[derive(Debug, Clone, Default)]
pub struct CheckContext {
    /// Where the service listens, if not on the loopback addresses.
    pub(crate) service_address: Option<IpAddr>,
    /// The server's ports and labels.
    pub(crate) own_values: Arc<OwnValues>,
    /// What the release in use declares.
    pub(crate) release: Option<ReleaseChecks>,
    /// `COHORT_*` variables for `exec`.
    pub(crate) variables: BTreeMap<String, String>,
    /// The server's own variables for the app's programs.
    pub(crate) own_env: BTreeMap<String, String>,
    /// The server's own programs, which `exec` may name as `host:NAME`.
    pub(crate) host_programs: Arc<BTreeMap<ProgramName, HostProgram>>,
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
    /// A value in a JSON body.
    WrongValue {
        pointer: String,
        /// `None`: it is not there.
        found: Option<String>,
        expected: String,
    },
    /// What the service said over TCP.
    WrongAnswer {
        /// Its start.
        found: String,
        expected: String,
    },
    /// The service speaks gRPC, and does not say that it serves.
    NotServing(String),
    /// It does not speak gRPC.
    NotGrpc(String),
    /// The service does not speak TLS, or does not prove who it is.
    NotTrusted(String),
    /// The program of an `exec` check failed.
    Exited {
        exit: Exit,
        output: String,
    },
    /// The policy names a check that the release does not have.
    Undeclared {
        name: CheckName,
        version: Version,
    },
    /// The policy names a program that this server does not list.
    NotListed(String),
    /// The check cannot run on this server: not the release's fault.
    CannotCheck(String),
}

impl CheckFailure {
    pub(crate) fn blame(&self) -> Blame {
        match self {
            CheckFailure::NotListed(_) | CheckFailure::CannotCheck(_) => Blame::Surroundings,
            CheckFailure::Refused
            | CheckFailure::TimedOut
            | CheckFailure::Reset
            | CheckFailure::Unreachable(_)
            | CheckFailure::NotHttp
            | CheckFailure::WrongStatus { .. }
            | CheckFailure::WrongHeader { .. }
            | CheckFailure::WrongBody { .. }
            | CheckFailure::WrongValue { .. }
            | CheckFailure::WrongAnswer { .. }
            | CheckFailure::NotTrusted(_)
            | CheckFailure::NotServing(_)
            | CheckFailure::NotGrpc(_)
            | CheckFailure::Exited { .. }
            | CheckFailure::Undeclared { .. } => Blame::Release,
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
            CheckFailure::WrongValue { pointer, found: Some(found), expected } => {
                write!(f, "{pointer} in the body is {found}, expected {expected}")
            }
            CheckFailure::WrongValue { pointer, found: None, expected } => {
                write!(f, "no {pointer} in the body, expected {expected}")
            }
            CheckFailure::WrongAnswer { found, expected } => {
                write!(f, "no `{expected}` in the answer, which starts with `{found}`")
            }
            CheckFailure::NotServing(what) => write!(f, "{what}, expected SERVING"),
            CheckFailure::NotGrpc(why) => write!(f, "not a gRPC response: {why}"),
            CheckFailure::NotTrusted(why) => write!(f, "TLS: {why}"),
            CheckFailure::Exited { exit, output } => write!(f, "{exit}: {output}"),
            CheckFailure::Undeclared { name, version } => write!(
                f,
                "the policy names the check `{name}`, which release {version} does not declare: \
                 add [checks.{name}] to its cohort.toml and publish it as another version, or \
                 remove the check from the policy"
            ),
            CheckFailure::NotListed(name) => write!(
                f,
                "the policy names the check `host:{name}`, which this server does not list: add \
                 `{name}` to `exec_programs` in agent.toml, or remove the check from the policy"
            ),
            CheckFailure::CannotCheck(why) => write!(f, "cannot check: {why}"),
        }
    }
}

/// A check's name for people: its kind and its target on this server.
pub(crate) fn check_name(check: &Check, context: &CheckContext) -> String {
    let at = |port: &Option<PortAt>| match context.own_values.port_at(port.as_ref()) {
        Ok(port) => format!(":{port}"),
        Err(_) => port.iter().map(|named| format!(":{named}")).collect(),
    };
    match &check.probe {
        Probe::Tcp(TcpProbe { socket: Some(socket), .. }) => format!("tcp {socket}"),
        Probe::Tcp(TcpProbe { port, .. }) => format!("tcp {}", at(port)),
        Probe::Http(http) => {
            let scheme = if http.tls.is_some() { "https" } else { "http" };
            let path = &http.path;
            match &http.socket {
                Some(socket) => format!("{scheme} {socket}:{path}"),
                None => format!("{scheme} {}{path}", at(&http.port)),
            }
        }
        Probe::Grpc(grpc) => {
            let of = grpc.service.as_ref().map_or_else(String::new, |name| format!(" {name}"));
            match &grpc.socket {
                Some(socket) => format!("grpc {socket}{of}"),
                None => format!("grpc {}{of}", at(&grpc.port)),
            }
        }
        Probe::Exec { name } => format!("exec {name}"),
    }
}

/// Runs the check once.
pub(crate) async fn look(check: &Check, context: &CheckContext) -> Result<(), CheckFailure> {
    let limit = Duration::from_millis(check.timeout.ms);
    match &check.probe {
        Probe::Tcp(tcp) => {
            let at = context.place(tcp.port.as_ref(), tcp.socket.as_deref())?;
            let look = async { crate::check_tcp::look(at.connect().await?.0, tcp, limit).await };
            within(limit, Box::pin(look)).await
        }
        Probe::Http(http) => {
            let at = context.place(http.port.as_ref(), http.socket.as_deref())?;
            let look = async {
                let (stream, host) = at.connect().await?;
                let stream = match &http.tls {
                    Some(tls) => crate::check_tls::wrap(stream, tls, None).await?,
                    None => stream,
                };
                crate::check_http::look(stream, &host, http, limit).await
            };
            within(limit, Box::pin(look)).await
        }
        Probe::Grpc(grpc) => {
            let at = context.place(grpc.port.as_ref(), grpc.socket.as_deref())?;
            let look = async {
                let (stream, host) = at.connect().await?;
                let stream = match &grpc.tls {
                    Some(tls) => crate::check_tls::wrap(stream, tls, Some("h2")).await?,
                    None => stream,
                };
                crate::check_grpc::look(stream, &host, grpc).await
            };
            within(limit, Box::pin(look)).await
        }
        Probe::Exec { name } => crate::check_exec::look(name, limit, context).await,
    }
}

/// What a check saw once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Look {
    /// The check's kind and its target on this server.
    pub check: String,
    /// Why it does not pass; `None` if it does.
    pub failure: Option<String>,
}

/// Makes each check once, all at the same time and whatever phases they are for; none takes longer
/// than `limit`. Nothing follows from what they see.
pub async fn look_once(checks: &[Check], context: &CheckContext, limit: Duration) -> Vec<Look> {
    let limit_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
    let looks = checks.iter().map(async |check| {
        let mut check = check.clone();
        check.timeout.ms = check.timeout.ms.min(limit_ms);
        let failure = look(&check, context).await.err().map(|failure| failure.to_string());
        Look { check: check_name(&check, context), failure }
    });
    join_all(looks).await
}

/// Runs for most of a check's limit: what was seen by then says more than that time is over.
pub(crate) async fn until<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(limit.mul_f64(0.9), work).await.ok()
}

/// The start of an answer, for people.
pub(crate) fn quoted(answer: &[u8]) -> String {
    let text = String::from_utf8_lossy(answer);
    let begin: String = text.chars().take(QUOTED_CHARS_MAX).collect();
    begin.trim().to_owned()
}

async fn within(
    limit: Duration,
    look: impl Future<Output = Result<(), CheckFailure>>,
) -> Result<(), CheckFailure> {
    tokio::time::timeout(limit, look).await.unwrap_or(Err(CheckFailure::TimedOut))
}

impl CheckContext {
    pub(crate) fn fill_in(&self, text: &str) -> Result<String, CheckFailure> {
        let filled = self.own_values.fill_in(text, &self.variables);
        filled.map_err(|error| CheckFailure::CannotCheck(chain(&error)))
    }

    /// Where a check goes: to a socket of the app, or to the port that it names, or its own.
    fn place(&self, port: Option<&PortAt>, socket: Option<&str>) -> Result<Place, CheckFailure> {
        if let Some(name) = socket {
            let folder = self.variables.get("COHORT_RUNTIME_DIR").ok_or_else(|| {
                CheckFailure::CannotCheck("the app has no runtime directory".to_owned())
            })?;
            return Ok(Place::Socket { folder: folder.into(), name: name.to_owned() });
        }
        let port = self.own_values.port_at(port);
        let port = port.map_err(|error| CheckFailure::CannotCheck(chain(&error)))?;
        let loopback = [Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
        let own: &[IpAddr] = match &self.service_address {
            Some(address) => std::slice::from_ref(address),
            None => &loopback,
        };
        Ok(Place::Addresses(own.iter().map(|own| SocketAddr::new(*own, port)).collect()))
    }
}

/// A connection to this server's own service.
pub(crate) type Stream = Box<dyn Connection>;

pub(crate) trait Connection: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Connection for T {}

enum Place {
    /// The first that answers.
    Addresses(Vec<SocketAddr>),
    Socket {
        folder: PathBuf,
        name: String,
    },
}

impl Place {
    /// Connects; returns also what to call it in a request.
    async fn connect(&self) -> Result<(Stream, String), CheckFailure> {
        match self {
            Place::Addresses(addresses) => {
                let mut first = None;
                for address in addresses {
                    match TcpStream::connect(address).await {
                        Ok(stream) => return Ok((Box::new(stream), address.to_string())),
                        Err(error) => first = first.or(Some(CheckFailure::from_io(&error))),
                    }
                }
                Err(first.unwrap_or(CheckFailure::Refused))
            }
            Place::Socket { folder, name } => {
                let failed = |error: io::Error| match error.kind() {
                    io::ErrorKind::NotFound => CheckFailure::Unreachable(format!(
                        "no socket {name} in {}",
                        folder.display()
                    )),
                    _ => CheckFailure::from_io(&error),
                };
                // The service may put a link there: root follows none.
                let socket = Inside::open(folder).and_then(|it| it.handle(Path::new(name)));
                let socket = socket.map_err(failed)?;
                let path = format!("/proc/self/fd/{}", socket.as_raw_fd());
                let stream = UnixStream::connect(path).await.map_err(failed)?;
                Ok((Box::new(stream), "localhost".to_owned()))
            }
        }
    }
}

#[cfg(test)]
#[path = "check_test.rs"]
mod check_test;
