//! nginx: the origin of the repository, and the services whose latency is measured.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use cohort_trial::Process;

use super::network::Network;

/// A running nginx; stopped when dropped.
pub(super) struct Nginx {
    process: Process,
    access_log: PathBuf,
}

#[derive(Debug, Clone)]
pub(super) struct Answered {
    /// Time of the request, as Unix time in seconds.
    pub at: f64,
    pub path: String,
}

impl Answered {
    /// `$msec $request_time $status $uri`.
    fn parse(line: &str) -> Option<Answered> {
        let mut words = line.split(' ');
        let ended: f64 = words.next()?.parse().ok()?;
        let took: f64 = words.next()?.parse().ok()?;
        Some(Answered { at: ended - took, path: words.nth(1)?.to_owned() })
    }
}

impl Nginx {
    /// Serves the directory `root` from a namespace.
    pub(super) fn folder(
        name: &str,
        at: (Ipv4Addr, u16),
        dir: &Path,
        root: &Path,
    ) -> Result<Nginx> {
        let dir = dir.join(format!("nginx-{name}-{}", at.1));
        fs::create_dir_all(&dir)?;
        let config = dir.join("nginx.conf");
        let access_log = dir.join("access.log");
        let (ip, port) = at;
        let (folder, log, root) = (dir.display(), access_log.display(), root.display());
        let text = format!(
            "user root; daemon off; worker_processes 1; pid {folder}/pid;\n\
             error_log {folder}/error.log;\nevents {{ worker_connections 1024; }}\n\
             http {{\n    log_format moments '$msec $request_time $status $uri';\n    \
             access_log {log} moments;\n    \
             sendfile on; tcp_nodelay on; keepalive_requests 1000000;\n    \
             server {{ listen {ip}:{port}; root {root}; }}\n}}\n"
        );
        fs::write(&config, text)?;
        let mut command = Network::command(name, "nginx");
        command.arg("-c").arg(&config).arg("-e").arg(dir.join("error.log"));
        let log = dir.join("output.log");
        let mut process = Process::start("nginx", &mut command, &log)?;
        process.until_it_listens((ip, port).into(), &log)?;
        Ok(Nginx { process, access_log })
    }

    /// Requests with complete responses; nginx logs them only then.
    pub(super) fn answered(&self) -> Result<Vec<Answered>> {
        let text = fs::read_to_string(&self.access_log)?;
        let parsed = text.lines().map(|line| {
            Answered::parse(line).with_context(|| format!("unexpected line in nginx's log: {line}"))
        });
        parsed.collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.process.stop(Duration::from_secs(5));
    }
}

#[cfg(test)]
#[path = "origin_test.rs"]
mod origin_test;
