//! nginx: as the origin of a repository, and as the caching proxy that we are compared with.

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cohort_trial::Process;

use super::network::Network;

/// How long nginx may take to listen.
const START_MAX: Duration = Duration::from_secs(20);

/// An nginx of our own.
pub(super) struct Nginx {
    process: Process,
    access_log: PathBuf,
}

/// One request that was answered.
#[derive(Debug, Clone)]
pub(super) struct Answered {
    /// When it came, in seconds since 1970.
    pub at: f64,
    /// For what.
    pub path: String,
}

impl Nginx {
    /// Starts one in a namespace; `server` is the body of its `server` block, `http` goes before it.
    pub(super) fn start(
        name: &str,
        at: (Ipv4Addr, u16),
        dir: &Path,
        (http, server): (&str, &str),
    ) -> Result<Nginx> {
        let dir = dir.join(format!("nginx-{name}-{}", at.1));
        fs::create_dir_all(&dir)?;
        let config = dir.join("nginx.conf");
        let access_log = dir.join("access.log");
        let (ip, port) = at;
        let (folder, log) = (dir.display(), access_log.display());
        let text = format!(
            "user root; daemon off; worker_processes 1; pid {folder}/pid;\n\
             error_log {folder}/error.log;\nevents {{ worker_connections 1024; }}\n\
             http {{\n    log_format moments '$msec $request_time $status $uri';\n    \
             access_log {log} moments;\n    proxy_temp_path {folder}/proxy;\n    \
             sendfile on; tcp_nodelay on; keepalive_requests 1000000;\n    {http}\n    \
             server {{ listen {ip}:{port}; {server} }}\n}}\n"
        );
        fs::write(&config, text)?;
        let mut command = Network::command(name, "nginx");
        command.arg("-c").arg(&config).arg("-e").arg(dir.join("error.log"));
        let log = dir.join("output.log");
        let mut process = Process::start("nginx", &mut command, &log)?;
        let begun = Instant::now();
        while TcpStream::connect_timeout(&(ip, port).into(), Duration::from_millis(200)).is_err() {
            let text = || fs::read_to_string(&log).unwrap_or_default();
            ensure!(process.runs(), "nginx ended: {}", text());
            ensure!(begun.elapsed() < START_MAX, "nginx does not listen: {}", text());
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(Nginx { process, access_log })
    }

    /// Serves a folder.
    pub(super) fn folder(
        name: &str,
        at: (Ipv4Addr, u16),
        dir: &Path,
        root: &Path,
    ) -> Result<Nginx> {
        Nginx::start(name, at, dir, ("", &format!("root {};", root.display())))
    }

    /// Its number.
    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    /// The requests whose answers have ended; nginx notes them then.
    pub(super) fn answered(&self) -> Result<Vec<Answered>> {
        let text = fs::read_to_string(&self.access_log)?;
        text.lines()
            .map(|line| {
                let mut words = line.split(' ');
                let mut number = || words.next().and_then(|word| word.parse::<f64>().ok());
                let (ended, took) = (number(), number());
                let path = words.nth(1).map(str::to_owned);
                let parts = ended.zip(took).zip(path);
                let ((ended, took), path) = parts.with_context(|| format!("nginx noted {line}"))?;
                Ok(Answered { at: ended - took, path })
            })
            .collect()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        self.process.stop(Duration::from_secs(5));
    }
}
