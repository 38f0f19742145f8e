//! Queries an agent's probe port, and its service.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::Fleet;

/// Timeout of either.
const ANSWER_MAX: Duration = Duration::from_secs(2);

impl Fleet {
    /// A value from an agent's `/metrics`, by name and labels as printed; without labels, the sum
    /// over all label sets. 0 if absent.
    pub fn figure(&self, server: &str, name: &str) -> Result<f64> {
        let (_, body) = get(self.agents()[server].probe, "/metrics")?;
        let of = body.lines().filter(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with([' ', '{']))
        });
        Ok(of.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum())
    }

    /// An agent's `/readyz`: whether it is ready, and the body.
    pub fn ready(&self, server: &str) -> Result<(bool, String)> {
        get(self.agents()[server].probe, "/readyz")
    }

    /// A page of a server's service: whether the status is 200, and the body.
    pub fn page(&self, server: &str, path: &str) -> Result<(bool, String)> {
        get(self.agents()[server].service, path)
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
