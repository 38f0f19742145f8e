//! Whether a transfer slows down services on the servers.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

use super::origin::Nginx;
use super::zone::Zone;

const PORT: u16 = 8_088;

/// Size of a response: a small page.
const PAGE_BYTES: usize = 16 * 1024;

/// How often every service is probed.
const EVERY: Duration = Duration::from_millis(20);

const ANSWER_MAX: Duration = Duration::from_secs(5);

/// How long services are probed before the transfer.
const BEFORE: Duration = Duration::from_secs(8);

/// With fewer responses, a p99 is meaningless.
const ANSWERS_MIN: usize = 500;

/// The ratio of p99 response times: during a transfer ÷ before it.
pub(super) fn p99_ratio(zone: &mut Zone, mib: usize) -> Result<f64> {
    let dir = zone.dir().join("services");
    fs::create_dir_all(&dir)?;
    fs::write(dir.join("page"), vec![b'.'; PAGE_BYTES])?;
    let mut services = Vec::new();
    for (server, agent) in zone.fleet.agents() {
        let std::net::IpAddr::V4(ip) = agent.address.ip() else { bail!("{server}: no IPv4") };
        let at: (Ipv4Addr, u16) = (ip, PORT);
        services.push((Nginx::folder(server, at, &dir, &dir)?, SocketAddr::from(at)));
    }
    let probes = Probes::start(services.iter().map(|(_, address)| *address));
    thread::sleep(BEFORE);
    let before = probes.end()?;
    let addresses: Vec<SocketAddr> = services.iter().map(|(_, address)| *address).collect();
    let mut during = None;
    zone.transfer_with("with services", mib, |zone| {
        let probes = Probes::start(addresses.into_iter());
        // Most of the transfer, and nothing after it.
        let bytes = (mib as u64) << 20;
        thread::sleep(Duration::from_secs_f64(zone.links.limit_s(bytes) * 0.8));
        during = Some(probes.end()?);
        Ok(Vec::new())
    })?;
    let during = during.context("no answers were timed during the transfer")?;
    let (usual, then) = (percentiles(before)?, percentiles(during)?);
    let tell = |what: &str, p: &[f64; 3]| {
        eprintln!("    {what}: p50 {:.2} ms, p99 {:.2} ms, longest {:.2} ms", p[0], p[1], p[2]);
    };
    tell("before", &usual);
    tell("during", &then);
    Ok(then[1] / usual[1])
}

/// p50, p99 and maximum, in milliseconds.
fn percentiles(mut times: Vec<Duration>) -> Result<[f64; 3]> {
    ensure!(times.len() >= ANSWERS_MIN, "only {} answers were timed", times.len());
    times.sort();
    let at = |part: usize| times[(times.len() - 1) * part / 100].as_secs_f64() * 1e3;
    Ok([at(50), at(99), at(100)])
}

/// One client per service, over one connection, on the other side of the server's NIC.
struct Probes {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Result<Vec<Duration>>>>,
}

impl Probes {
    fn start(services: impl Iterator<Item = SocketAddr>) -> Probes {
        let stop = Arc::new(AtomicBool::new(false));
        let clients = services
            .map(|address| {
                let stop = Arc::clone(&stop);
                thread::spawn(move || ask(address, &stop))
            })
            .collect();
        Probes { stop, clients }
    }

    fn end(self) -> Result<Vec<Duration>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Vec::new();
        for client in self.clients {
            match client.join() {
                Ok(times) => all.extend(times?),
                Err(_) => bail!("a client of a service panicked"),
            }
        }
        Ok(all)
    }
}

fn ask(address: SocketAddr, stop: &AtomicBool) -> Result<Vec<Duration>> {
    let stream = TcpStream::connect_timeout(&address, ANSWER_MAX)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    let mut reader = BufReader::new(&stream);
    let mut times = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let asked = Instant::now();
        (&stream).write_all(b"GET /page HTTP/1.1\r\nHost: service\r\n\r\n")?;
        let mut line = String::new();
        loop {
            line.clear();
            ensure!(reader.read_line(&mut line)? > 0, "the service hung up");
            if line == "\r\n" {
                break;
            }
        }
        let mut page = [0; PAGE_BYTES];
        reader.read_exact(&mut page)?;
        times.push(asked.elapsed());
        thread::sleep(EVERY.saturating_sub(asked.elapsed()));
    }
    Ok(times)
}

#[cfg(test)]
#[path = "service_test.rs"]
mod service_test;
