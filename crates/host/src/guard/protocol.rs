//! The protocol on the guard's socket: one JSON object per line, one response per request.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use futures_util::SinkExt as _;
use serde::{Deserialize, Serialize};
use tokio::net::UnixStream;
use tokio_util::codec::{Framed, LinesCodec, LinesCodecError};

use crate::service::{ServiceSpec, ServiceStatus};

/// The protocol's version: both sides have to speak the same one.
pub(crate) const VERSION: u32 = 4;

/// The socket, in the guard's directory.
pub(super) const SOCKET: &str = "guard.sock";

/// Longest path of a unix socket that the kernel accepts, in bytes, without the NUL.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The socket's path, short enough for the kernel: if long, through the open directory.
pub(super) fn short_path(folder: &File, path: &Path) -> PathBuf {
    if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        path.to_owned()
    } else {
        Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(SOCKET)
    }
}

/// Longest line: fits a command of 256 words and as many variables, and bounds memory.
const LINE_BYTES_MAX: usize = 256 * 1024;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    pub(crate) version: u32,
    pub(crate) ask: Ask,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ask {
    Start(Box<ServiceSpec>),
    Stop { name: String },
    Status { name: String },
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Response {
    pub(crate) version: u32,
    pub(crate) answer: Answer,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Answer {
    Done,
    Status(ServiceStatus),
    /// The service's program cannot be run: the release's fault.
    CannotStart(String),
    /// Something else on the server has what it needs.
    Taken(String),
    /// The guard could not do it, or did not understand the request.
    Refused(String),
}

/// A connection on the guard's socket.
pub(crate) type Lines = Framed<UnixStream, LinesCodec>;

pub(crate) fn lines(stream: UnixStream) -> Lines {
    Framed::new(stream, LinesCodec::new_with_max_length(LINE_BYTES_MAX))
}

pub(crate) async fn send(lines: &mut Lines, value: &impl Serialize) -> io::Result<()> {
    let line = serde_json::to_string(value)?;
    if line.len() > LINE_BYTES_MAX {
        return Err(io::Error::other("message longer than 256 KiB"));
    }
    lines.send(line).await.map_err(broken)
}

pub(crate) fn broken(error: LinesCodecError) -> io::Error {
    match error {
        LinesCodecError::Io(error) => error,
        LinesCodecError::MaxLineLengthExceeded => io::Error::other("line longer than 256 KiB"),
    }
}

#[cfg(test)]
#[path = "protocol_test.rs"]
pub(crate) mod protocol_test;
