//! Evidence of what happened: the guards' records, the services' own output, and an agent's probe
//! port.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::Fleet;
use crate::prober::Seen;

/// Timeout of a probe port.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// An event in a guard's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Guarded {
    /// Time on the machine's boot-time clock.
    pub boot_ms: u64,
    /// The service, named like its app.
    pub service: String,
    /// The fence it was started with.
    pub key: String,
    /// `started`, `adopted`, `exited`, `stopped`.
    pub event: String,
}

/// One line that the example service printed about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Time on the machine's boot-time clock.
    pub boot_ms: u64,
    /// `start`, `stop`, `die`.
    pub event: String,
    /// The version that printed it.
    pub version: String,
}

impl Fleet {
    /// A guard's record of a server's services, oldest first.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn guarded(&self, server: &str) -> Result<Vec<Guarded>> {
        let path = self.agents()[server].dir.join("data/guard/events.log");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let mut all = Vec::new();
        for line in text.lines() {
            let event: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
            let field = |name: &str| event[name].as_str().unwrap_or_default().to_owned();
            all.push(Guarded {
                boot_ms: event["boot_ms"].as_u64().unwrap_or_default(),
                service: field("service"),
                key: field("key"),
                event: field("event"),
            });
        }
        Ok(all)
    }

    /// What a server's services printed about themselves, oldest first.
    ///
    /// # Errors
    /// When it cannot be read.
    pub fn said(&self, server: &str) -> Result<Vec<Said>> {
        let path = self.agents()[server].dir.join("data/guard/logs/web.log");
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let field = |line: &str, name: &str| {
            let mut words = line.split_whitespace();
            words.find_map(|word| word.strip_prefix(name)?.strip_prefix('=').map(str::to_owned))
        };
        let said = text.lines().filter_map(|line| {
            Some(Said {
                boot_ms: field(line, "boot_ms")?.parse().ok()?,
                event: field(line, "event")?,
                version: field(line, "version")?,
            })
        });
        Ok(said.collect())
    }

    /// All services' own output, in the form of a prober's findings.
    ///
    /// # Errors
    /// When a server's lines cannot be read.
    pub fn said_by_all(&self) -> Result<Vec<Seen>> {
        let mut seen = Vec::new();
        for server in self.agents().keys() {
            for said in self.said(server)? {
                seen.push(Seen {
                    at: Duration::from_millis(said.boot_ms),
                    server: server.clone(),
                    version: (said.event == "start").then_some(said.version),
                });
            }
        }
        seen.sort_by_key(|one| one.at);
        Ok(seen)
    }

    /// A value of an agent's `/metrics`, by name and labels as printed; 0 if absent.
    ///
    /// # Errors
    /// When its probe port does not answer.
    pub fn figure(&self, server: &str, name: &str) -> Result<f64> {
        let (_, body) = get(self.agents()[server].probe, "/metrics")?;
        let line = body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        Ok(line.and_then(|value| value.trim().parse().ok()).unwrap_or(0.0))
    }

    /// An agent's `/readyz`: whether it is ready, and the body.
    ///
    /// # Errors
    /// When its probe port does not answer.
    pub fn ready(&self, server: &str) -> Result<(bool, String)> {
        get(self.agents()[server].probe, "/readyz")
    }
}

/// A plain GET: whether the status is 200, and the body.
fn get(address: SocketAddr, path: &str) -> Result<(bool, String)> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_MAX)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(1 << 20).read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an answer has a head")?;
    Ok((head.starts_with("HTTP/1.1 200"), body.to_owned()))
}
