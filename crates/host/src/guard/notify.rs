//! What a service says of itself, as sd_notify(3) has it.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, lchown};
use std::path::Path;

use tokio::net::UnixDatagram;

use crate::program::RunAs;

/// Longest message that is read, in bytes; the rest of a longer one is lost.
const MESSAGE_BYTES_MAX: usize = 4 * 1024;

/// How much of a status text is kept, in characters: a line.
const STATUS_CHARS_MAX: usize = 120;

/// One message. Everything else that services send to systemd has no effect.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) ready: bool,
    pub(super) stopping: bool,
    pub(super) alive: bool,
    pub(super) status: Option<String>,
}

impl Said {
    pub(super) fn read(message: &[u8]) -> Self {
        let mut said = Said::default();
        for line in String::from_utf8_lossy(message).lines() {
            match line.split_once('=') {
                Some(("READY", "1")) => said.ready = true,
                Some(("STOPPING", "1")) => said.stopping = true,
                Some(("WATCHDOG", "1")) => said.alive = true,
                Some(("STATUS", text)) => {
                    said.status = Some(text.chars().take(STATUS_CHARS_MAX).collect());
                }
                _ => {}
            }
        }
        said
    }
}

/// Where one service speaks. Only its user may.
#[derive(Debug)]
pub(super) struct NotifySocket(UnixDatagram);

impl NotifySocket {
    /// Makes the socket, in place of an earlier guard's.
    pub(super) fn bind(path: &Path, owner: Option<RunAs>) -> io::Result<Self> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let socket = UnixDatagram::bind(path)?;
        // Nobody else can put anything in its place: the directory is the agent's.
        fs::set_permissions(path, Permissions::from_mode(0o600))?;
        if let Some(RunAs { uid, gid }) = owner {
            lchown(path, Some(uid), Some(gid))?;
        }
        Ok(NotifySocket(socket))
    }

    pub(super) async fn next(&self) -> Said {
        let mut buffer = [0; MESSAGE_BYTES_MAX];
        match self.0.recv(&mut buffer).await {
            Ok(length) => Said::read(&buffer[..length]),
            // Nobody has broken it, and nothing can be heard any more.
            Err(_) => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_has_several_lines_and_what_is_unknown_is_nothing() {
        let said = Said::read(b"READY=1\nSTATUS=warm = yes\nMAINPID=7\n\xff\n");
        let status = Some("warm = yes".to_owned());
        assert_eq!(said, Said { ready: true, status, ..Said::default() });
        assert_eq!(Said::read(b"READY=0\nWATCHDOG=trigger\nSTOPPING"), Said::default());
        let long = format!("STATUS={}", "ä".repeat(4000));
        assert_eq!(Said::read(long.as_bytes()).status.unwrap().chars().count(), STATUS_CHARS_MAX);
    }
}
