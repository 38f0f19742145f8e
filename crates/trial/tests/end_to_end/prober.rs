//! Probes the services from outside, like their users.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often to probe each service.
const EVERY: Duration = Duration::from_millis(25);
/// Timeout of a probe. Far longer than a refused connection takes: a machine busy with other tests
/// must not look like a service that is down.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// A change in a service's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Since the prober started.
    pub(crate) at: Duration,
    /// The probed server.
    pub(crate) server: String,
    /// The version that answered; `None` if the service is down.
    pub(crate) version: Option<String>,
}

/// Probes every service continuously, and records changes.
#[derive(Debug)]
pub(crate) struct Prober {
    stop: Arc<AtomicBool>,
    /// One per service; each returns what it saw.
    threads: Vec<JoinHandle<Vec<Seen>>>,
}

impl Prober {
    /// Starts probing these services, given by name and address.
    pub(crate) fn start(services: &BTreeMap<String, SocketAddr>) -> Prober {
        let stop = Arc::new(AtomicBool::new(false));
        let begun = Instant::now();
        let threads = services
            .iter()
            .map(|(server, address)| {
                let (server, address) = (server.clone(), *address);
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || {
                    let mut seen: Vec<Seen> = Vec::new();
                    while !stop.load(Ordering::Relaxed) {
                        let version = version_at(address);
                        if seen.last().is_none_or(|last| last.version != version) {
                            let at = begun.elapsed();
                            let server = server.clone();
                            seen.push(Seen { at, server, version });
                        }
                        std::thread::sleep(EVERY);
                    }
                    seen
                })
            })
            .collect();
        Prober { stop, threads }
    }

    /// Stops, and returns the changes in time order.
    pub(crate) fn stop(self) -> Vec<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        let ended = self.threads.into_iter().flat_map(JoinHandle::join);
        let mut seen: Vec<Seen> = ended.flatten().collect();
        seen.sort_by_key(|one| one.at);
        seen
    }
}

/// The maximum number of services down at once, among those that had been up before.
pub(crate) fn most_down(seen: &[Seen]) -> usize {
    let mut up_once: BTreeMap<&str, bool> = BTreeMap::new();
    let mut most = 0;
    for one in seen {
        if one.version.is_some() {
            up_once.insert(&one.server, true);
        } else if let Some(up) = up_once.get_mut(one.server.as_str()) {
            *up = false;
        }
        most = most.max(up_once.values().filter(|up| !**up).count());
    }
    most
}

/// The answer to `/version` there, if it is 200.
pub(crate) fn version_at(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&address, ANSWER_MAX).ok()?;
    stream.set_read_timeout(Some(ANSWER_MAX)).ok()?;
    stream
        .write_all(b"GET /version HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        .ok()?;
    let mut answer = String::new();
    stream.take(4096).read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.starts_with("HTTP/1.1 200").then(|| body.trim().to_owned())
}
