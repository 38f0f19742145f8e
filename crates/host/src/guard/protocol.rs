//! The protocol on the guard's socket: one JSON object per line, one answer per request.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use tokio::io::{
    AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
};

use crate::service::{ServiceSpec, ServiceStatus};

/// Both sides speak this version, or not at all.
pub(crate) const VERSION: u32 = 1;

/// The socket, in the guard's folder.
pub(super) const SOCKET: &str = "guard.sock";

/// Longest path of a unix socket that the kernel accepts, without the zero byte.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// The socket's path, short enough for the kernel: through the open folder when it is long.
pub(super) fn short_path(folder: &File, path: &Path) -> PathBuf {
    if path.as_os_str().len() <= SOCKET_PATH_BYTES_MAX {
        path.to_owned()
    } else {
        Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(SOCKET)
    }
}

/// Longest line: a command of 256 words and as many variables fits, and memory is bounded.
pub(crate) const LINE_BYTES_MAX: u64 = 256 * 1024;

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Request {
    pub(crate) version: u32,
    pub(crate) ask: Ask,
}

#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Ask {
    Start(ServiceSpec),
    Stop {
        name: String,
    },
    Status {
        name: String,
    },
    /// Stop every service and exit. The record stays: the next guard starts them again.
    Shutdown,
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
    /// The guard could not do it, or did not understand.
    Refused(String),
}

/// Reads one line of at most [`LINE_BYTES_MAX`]; `None` at the end of the stream.
pub(crate) async fn read_line(
    reader: &mut (impl AsyncBufRead + Unpin),
) -> std::io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let count = reader.take(LINE_BYTES_MAX).read_until(b'\n', &mut line).await?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(line)),
        Some(_) if count as u64 == LINE_BYTES_MAX => {
            Err(std::io::Error::other("line longer than 256 KiB"))
        }
        Some(_) => Ok(None),
    }
}

pub(crate) async fn write_line(
    writer: &mut (impl AsyncWrite + Unpin),
    value: &impl Serialize,
) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    if line.len() as u64 > LINE_BYTES_MAX {
        return Err(std::io::Error::other("message longer than 256 KiB"));
    }
    writer.write_all(&line).await
}

#[cfg(test)]
#[path = "protocol_test.rs"]
pub(crate) mod protocol_test;
