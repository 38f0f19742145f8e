//! Unused ports, below the range of outgoing connections.

use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Result, bail};

/// Range to search: below Linux's ephemeral range, which starts at 32768.
const FIRST: u16 = 10_000;
const LAST: u16 = 32_000;

/// Allocates ports of the loopback interface, each once.
#[derive(Debug)]
pub(crate) struct Ports {
    next: u16,
}

impl Ports {
    /// Starts at a port derived from the pid, so that two fleets rarely collide.
    pub(crate) fn new() -> Ports {
        let span = u32::from(LAST - FIRST);
        let offset = (std::process::id().wrapping_mul(2_654_435_761) >> 8) % span;
        Ports { next: FIRST + u16::try_from(offset).unwrap_or(0) }
    }

    /// The next port that is free right now.
    pub(crate) fn take(&mut self) -> Result<u16> {
        for _ in FIRST..LAST {
            let port = self.next;
            self.next = if port >= LAST { FIRST } else { port + 1 };
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return Ok(port);
            }
        }
        bail!("no free port between {FIRST} and {LAST}")
    }
}
