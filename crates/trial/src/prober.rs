//! A look at the services from outside Cohort, as their users have it.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How often every service is asked.
const EVERY: Duration = Duration::from_millis(25);
/// How long an answer may take. Far longer than a refusal takes: a machine that is busy with other
/// tests must not pass for a service that is down.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// One change of what a service answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Since the prober began.
    pub at: Duration,
    /// Which server.
    pub server: String,
    /// The version that answered; none when nobody did.
    pub version: Option<String>,
}

/// Asks every service, again and again, and keeps what changes.
#[derive(Debug)]
pub struct Prober {
    stop: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<Seen>>>,
    threads: Vec<JoinHandle<()>>,
}

impl Prober {
    /// Begins: name and address of each service.
    #[must_use]
    pub fn start(services: &BTreeMap<String, SocketAddr>) -> Prober {
        let stop = Arc::new(AtomicBool::new(false));
        let seen = Arc::new(Mutex::new(Vec::new()));
        let begun = Instant::now();
        let threads = services
            .iter()
            .map(|(server, address)| {
                let (server, address) = (server.clone(), *address);
                let (stop, seen) = (Arc::clone(&stop), Arc::clone(&seen));
                std::thread::spawn(move || {
                    let mut last: Option<Option<String>> = None;
                    while !stop.load(Ordering::Relaxed) {
                        let version = version_at(address);
                        if last.as_ref() != Some(&version) {
                            let at = begun.elapsed();
                            let server = server.clone();
                            seen.lock().unwrap_or_else(PoisonError::into_inner).push(Seen {
                                at,
                                server,
                                version: version.clone(),
                            });
                            last = Some(version);
                        }
                        std::thread::sleep(EVERY);
                    }
                })
            })
            .collect();
        Prober { stop, seen, threads }
    }

    /// Ends, and gives what was seen, in order.
    #[must_use]
    pub fn stop(self) -> Vec<Seen> {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads {
            let _ = thread.join();
        }
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone();
        seen.sort_by_key(|one| one.at);
        seen
    }
}

/// The most services that were down at once, among those that had been up before.
#[must_use]
pub fn most_down(seen: &[Seen]) -> usize {
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

/// What `/version` answers there, if it answers well.
#[must_use]
pub fn version_at(address: SocketAddr) -> Option<String> {
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
