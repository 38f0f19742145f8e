//! Evidence of what happened: the guards' records, and the services' own output.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::prober::Seen;
use crate::trial::Trial;

/// An event in a guard's record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Guarded {
    /// Time on the machine's boot-time clock.
    pub(crate) boot_ms: u64,
    /// The service, named like its app.
    pub(crate) service: String,
    /// The fence it was started with.
    pub(crate) key: String,
    /// `started`, `adopted`, `exited`, `stopped`.
    pub(crate) event: String,
}

/// A line that the example service printed about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Said {
    /// Time on the machine's boot-time clock.
    pub(crate) boot_ms: u64,
    /// `start`, `stop`, `die`.
    pub(crate) event: String,
    /// The version that printed it.
    pub(crate) version: String,
}

impl Trial {
    /// A guard's record of a server's services, oldest first.
    pub(crate) fn guarded(&self, server: &str) -> Result<Vec<Guarded>> {
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
    pub(crate) fn said(&self, server: &str) -> Result<Vec<Said>> {
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

    /// All services' own output, in the form of a prober's observations.
    pub(crate) fn said_by_all(&self) -> Result<Vec<Seen>> {
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
}
