//! The alternatives, over the same links and for the same bytes: every server from the origin
//! (curl), a caching proxy in the zone (nginx), a BitTorrent swarm (aria2).

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use cohort_trial::Process;

use super::cpu;
use super::network::{MIRROR, MIRROR_NAME, Network, PROXY, SWITCH};
use super::origin::Nginx;
use super::swarm_tracker;
use super::zone::{Ready, Zone};

/// Timeout of a rival, in multiples of the limit per server, plus [`EXTRA`].
const LIMITS_PER_SERVER_MAX: f64 = 1.5;

/// See [`LIMITS_PER_SERVER_MAX`].
const EXTRA: Duration = Duration::from_secs(30);

/// How often completion is polled; below a thousandth of what is measured.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// The proxy's port.
const PROXY_PORT: u16 = 8080;

/// The namespace of the proxy.
const PROXY_NAME: &str = "proxy";

/// Port of every member of the swarm.
const SWARM_PORT: u16 = 6881;

/// One line of the comparison.
#[derive(Debug, Clone)]
pub(super) struct Compared {
    pub who: &'static str,
    pub ratio: f64,
    pub wan: f64,
    pub cpu_s: f64,
}

/// All rivals, one after the other.
pub(super) fn measure(zone: &mut Zone, mib: usize, quick: bool) -> Result<Vec<Compared>> {
    let blob = zone.publish(mib << 20)?;
    let nic = zone.links.nic_mbit;
    let mut compared = Vec::new();
    // Every server from the origin takes proportional time: a quarter of the bytes is enough.
    let small = if quick { zone.publish((mib << 20) / 4)? } else { blob.clone() };
    compared.push(curl(zone, &small, "curl, everyone from the origin")?);
    compared.push(proxy(zone, &blob, "nginx, a caching proxy with a server's NIC", nic)?);
    compared.push(proxy(zone, &blob, "nginx, a caching proxy with 8 NICs", nic * 8)?);
    compared.push(aria2(zone, &blob)?);
    for line in &compared {
        let Compared { who, ratio, wan, cpu_s } = line;
        eprintln!("  {who}: ratio {ratio:.3}, WAN copies {wan:.4}, CPU {cpu_s:.2} s");
    }
    Ok(compared)
}

fn patience(zone: &Zone, blob: &Ready) -> Duration {
    let limits = LIMITS_PER_SERVER_MAX * zone.servers().len() as f64;
    Duration::from_secs_f64(zone.links.limit_s(blob.bytes) * limits) + EXTRA
}

fn curl(zone: &Zone, blob: &Ready, who: &'static str) -> Result<Compared> {
    let url = format!("http://{MIRROR}/blobs/{}", blob.root);
    download(zone, blob, who, &url)
}

/// Every server fetches from one URL.
fn download(zone: &Zone, blob: &Ready, who: &'static str, url: &str) -> Result<Compared> {
    let dir = zone.dir().join("rival");
    fs::create_dir_all(&dir)?;
    let before = zone.network.downlink_bytes()?;
    let ended_before = cpu::seconds_of_ended();
    let begun = Instant::now();
    let mut running = Vec::new();
    for server in zone.servers() {
        let mut command = Network::command(&server, "curl");
        command.args(["--silent", "--show-error", "--fail", "--output"]);
        command.arg(dir.join(&server)).arg(url);
        running.push(Process::start(&server, &mut command, &dir.join("log"))?);
    }
    let patience = patience(zone, blob);
    while running.iter_mut().any(Process::runs) {
        ensure!(begun.elapsed() < patience, "{who}: not everywhere after {patience:?}");
        std::thread::sleep(LOOK_EVERY);
    }
    let seconds = begun.elapsed().as_secs_f64();
    for process in &mut running {
        let log = || fs::read_to_string(dir.join("log")).unwrap_or_default();
        let well = process.status().is_some_and(|status| status.success());
        ensure!(well, "{who}: curl failed at {}: {}", process.name(), log());
    }
    drop(running);
    let wan_bytes = zone.network.downlink_bytes()? - before;
    let cpu_s = cpu::seconds_of_ended() - ended_before;
    let files = zone.servers().into_iter().map(|server| dir.join(server));
    compared(zone, blob, who, files, seconds, wan_bytes, cpu_s)
}

/// A proxy configured as in `docs/operating.md`: slices, each fetched once. A request that waits
/// for a slice polls every half second, which is most of the time of the proxy with a fast link.
fn proxy(zone: &mut Zone, blob: &Ready, who: &'static str, nic_mbit: u32) -> Result<Compared> {
    zone.network.join(PROXY_NAME, PROXY, nic_mbit, nic_mbit)?;
    let dir = zone.dir().join("proxy");
    let cache = dir.join("cache").display().to_string();
    let http = format!("proxy_cache_path {cache} keys_zone=cohort:10m max_size=8g;");
    let server = format!(
        "location /blobs/ {{ slice 1m; proxy_cache cohort; proxy_cache_key $uri$slice_range; \
         proxy_set_header Range $slice_range; proxy_http_version 1.1; \
         proxy_cache_valid 200 206 30d; proxy_cache_lock on; proxy_cache_lock_age 60s; \
         proxy_cache_lock_timeout 60s; proxy_pass http://{MIRROR}; }}"
    );
    fs::create_dir_all(&dir)?;
    let nginx = Nginx::start(PROXY_NAME, (PROXY, PROXY_PORT), &dir, (&http, &server))?;
    let before = cpu::seconds_of([nginx.id()]);
    let url = format!("http://{PROXY}:{PROXY_PORT}/blobs/{}", blob.root);
    let done = download(zone, blob, who, &url);
    let own = cpu::seconds_of([nginx.id()]).since(before).all();
    drop(nginx);
    zone.network.leave(PROXY_NAME)?;
    fs::remove_dir_all(&dir)?;
    done.map(|line| Compared { cpu_s: line.cpu_s + own, ..line })
}

/// A swarm of all servers, with the origin as seed.
fn aria2(zone: &Zone, blob: &Ready) -> Result<Compared> {
    let who = "aria2, a BitTorrent swarm";
    let dir = zone.dir().join("rival");
    let original = zone.original(&blob.root);
    let torrent = dir.join("torrent");
    // The seed needs a copy of its own.
    let seeds = dir.join("seed");
    fs::create_dir_all(&seeds)?;
    fs::copy(&original, seeds.join(&blob.root))?;
    swarm_tracker::write_torrent(&original, swarm_tracker::start(SWITCH)?, &torrent)?;
    // Arguments: id of the download, number of files, path of the first.
    let done = dir.join("done");
    fs::write(&done, "#!/bin/sh\n: > \"$(dirname \"$3\")/whole\"\n")?;
    fs::set_permissions(&done, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let start = |name: &str, folder: &Path, more: &[&str]| {
        let mut command = Network::command(name, "aria2c");
        command.args(["--quiet", "--seed-ratio=0.0", "--enable-dht=false", "--enable-dht6=false"]);
        command.args(["--bt-enable-lpd=false", "--disable-ipv6=true", "--file-allocation=none"]);
        command.args(["--no-conf=true", "--summary-interval=0"]);
        command.arg(format!("--listen-port={SWARM_PORT}")).args(more);
        command.arg("--dir").arg(folder).arg(&torrent);
        Process::start(name, &mut command, &dir.join("log"))
    };
    let mut seed = start(MIRROR_NAME, &seeds, &["--bt-seed-unverified=true"])?;
    // Once it listens, it has announced itself.
    let begun = Instant::now();
    while std::net::TcpStream::connect((MIRROR, SWARM_PORT)).is_err() {
        ensure!(seed.runs() && begun.elapsed() < EXTRA, "{who}: the seed does not listen");
        std::thread::sleep(LOOK_EVERY);
    }
    let before = zone.network.downlink_bytes()?;
    let hook = format!("--on-bt-download-complete={}", done.display());
    let begun = Instant::now();
    let mut swarm = Vec::new();
    for server in zone.servers() {
        let folder = dir.join(format!("swarm-{server}"));
        fs::create_dir_all(&folder)?;
        swarm.push(start(&server, &folder, &[&hook])?);
    }
    let folders: Vec<PathBuf> =
        zone.servers().iter().map(|server| dir.join(format!("swarm-{server}"))).collect();
    let patience = patience(zone, blob);
    while !folders.iter().all(|folder| folder.join("whole").exists()) {
        ensure!(begun.elapsed() < patience, "{who}: not everywhere after {patience:?}");
        ensure!(swarm.iter_mut().all(Process::runs), "{who}: a member ended");
        std::thread::sleep(LOOK_EVERY);
    }
    let seconds = begun.elapsed().as_secs_f64();
    let wan_bytes = zone.network.downlink_bytes()? - before;
    // The seed is not counted, like the origin elsewhere.
    let cpu_s = cpu::seconds_of(swarm.iter().map(Process::id)).all();
    drop(swarm);
    drop(seed);
    let files = folders.into_iter().map(|folder| folder.join(&blob.root));
    compared(zone, blob, who, files, seconds, wan_bytes, cpu_s)
}

/// Verifies every copy, and cleans up.
fn compared(
    zone: &Zone,
    blob: &Ready,
    who: &'static str,
    files: impl Iterator<Item = PathBuf>,
    seconds: f64,
    wan_bytes: u64,
    cpu_s: f64,
) -> Result<Compared> {
    let original = fs::read(zone.original(&blob.root))?;
    for file in files {
        ensure!(fs::read(&file)? == original, "{who}: wrong bytes in {}", file.display());
    }
    fs::remove_dir_all(zone.dir().join("rival"))?;
    let ratio = seconds / zone.links.limit_s(blob.bytes);
    Ok(Compared { who, ratio, wan: wan_bytes as f64 / blob.bytes as f64, cpu_s })
}
