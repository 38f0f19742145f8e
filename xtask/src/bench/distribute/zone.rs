//! A zone of real agents on limited links, and transfers of releases to it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use cohort_trial::release::noise;
use cohort_trial::{Fleet, FleetOptions, Programs, watch};

use super::cpu::{self, Seconds};
use super::network::{MIRROR, MIRROR_NAME, Network, SWITCH};
use super::origin::Nginx;
use crate::bench::{GROUP, PLATFORM, ZONE};

/// Timeout for the group to form, and to detect a changed channel.
const SETTLE_MAX: Duration = Duration::from_secs(60);

/// Timeout of a transfer, in multiples of its limit, plus [`TRANSFER_EXTRA`]: more than a slow
/// server with a tenth of the NIC needs.
const TRANSFER_LIMITS_MAX: f64 = 6.0;

/// See [`TRANSFER_LIMITS_MAX`].
const TRANSFER_EXTRA: Duration = Duration::from_secs(30);

/// How often files are polled. The figures come from the times of the files themselves.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How long idle agents are observed.
const IDLE: Duration = Duration::from_secs(3);

/// A transfer counts as started after this many bytes through the downlink.
const BEGUN_BYTES: u64 = 1 << 20;

pub(super) const UNIT_BYTES: usize = 64 * 1024;

/// One wave of all servers, without waits or checks: only bytes matter here.
const POLICY: &str = r#"
app = "web"
channel = "stable"
check = []

[update]
max_parallel = "100%"
max_unavailable = "100%"
min_healthy_time = "100ms"
surroundings_allowed = "50%"
"#;

/// Size and link rates of a zone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Links {
    pub servers: usize,
    pub downlink_mbit: u32,
    pub nic_mbit: u32,
}

impl Links {
    /// Lower bound for transferring `bytes`, in seconds.
    pub(super) fn limit_s(self, bytes: u64) -> f64 {
        let mbit = self.downlink_mbit.min(self.nic_mbit);
        bytes as f64 * 8.0 / (f64::from(mbit) * 1e6)
    }
}

/// Agents, their hub, and the origin behind the downlink.
pub(super) struct Zone {
    pub fleet: Fleet,
    pub network: Network,
    pub links: Links,
    origin: Nginx,
    releases: u32,
    past: Vec<String>,
    dir: PathBuf,
}

/// A published release that no channel points to yet.
#[derive(Debug, Clone)]
pub(super) struct Ready {
    pub version: String,
    pub root: String,
    pub bytes: u64,
}

#[derive(Debug, Clone)]
pub(super) struct Transfer {
    /// Lower bound, in seconds.
    pub limit_s: f64,
    /// When each server had the complete file under its name, in seconds since the first request to
    /// the origin.
    pub ends: BTreeMap<String, f64>,
    /// From setting the channel until the last server had it, in seconds.
    pub since_channel_s: f64,
    /// Bytes through the downlink ÷ size.
    pub wan: f64,
    pub wan_bytes: u64,
    /// CPU seconds of all agents.
    pub cpu: Seconds,
    /// Bytes each server sent to others ÷ size of the artifact.
    pub carried: Vec<f64>,
    /// Units on the servers' disks that differ from the original.
    pub wrong_units: usize,
}

impl Transfer {
    /// When the last server except those in `but` had it, in seconds.
    pub(super) fn end_s(&self, but: &[&str]) -> f64 {
        let of = self.ends.iter().filter(|(name, _)| !but.contains(&name.as_str()));
        of.map(|(_, end)| *end).fold(0.0, f64::max)
    }

    /// Time ÷ lower bound.
    pub(super) fn ratio(&self) -> f64 {
        self.end_s(&[]) / self.limit_s
    }

    pub(super) fn tell(&self, what: &str) {
        let mut ends: Vec<f64> = self.ends.values().copied().collect();
        ends.sort_by(f64::total_cmp);
        let ends: Vec<String> = ends.iter().map(|end| format!("{end:.2}")).collect();
        let carried: Vec<String> = self.carried.iter().map(|times| format!("{times:.1}")).collect();
        eprintln!(
            "  {what}: ratio {:.3} ({:.3} since the channel was set), WAN copies {:.4}, CPU {:.2} \
             s ({:.2} user, {:.2} system); limit {:.2} s, ends {}; each carried {}",
            self.ratio(),
            self.since_channel_s / self.limit_s,
            self.wan,
            self.cpu.all(),
            self.cpu.user,
            self.cpu.system,
            self.limit_s,
            ends.join(" "),
            carried.join(" ")
        );
    }
}

impl Zone {
    /// Starts it with its state in `dir`, and waits until the group is complete and a first small
    /// release has been transferred.
    pub(super) fn start(
        programs: &Programs,
        dir: &Path,
        logs: &Path,
        links: Links,
    ) -> Result<Zone> {
        fs::create_dir_all(dir)?;
        fs::create_dir_all(logs)?;
        std::os::unix::fs::symlink(logs, dir.join("logs"))?;
        let mut network = Network::new(links.downlink_mbit)?;
        let options = FleetOptions {
            dir: dir.to_owned(),
            programs: programs.clone(),
            groups: vec![(PLATFORM.to_owned(), ZONE.to_owned(), links.servers)],
            mirrors: 0,
            agent_toml: format!("mirrors = [\"http://{MIRROR}/\"]"),
        };
        let mut fleet = Fleet::lay_out_at(options, SWITCH)?;
        let names: Vec<String> = fleet.agents().keys().cloned().collect();
        for (name, last) in names.iter().zip(1..) {
            let ip = Ipv4Addr::new(10, 77, 0, last);
            network.join(name, ip, links.nic_mbit, links.nic_mbit)?;
            fleet.place(name, ip, &Network::at(name));
        }
        let repository = fleet.context_dir().join("repository");
        let origin = Nginx::folder(MIRROR_NAME, (MIRROR, 80), dir, &repository)?;
        eprintln!(
            "starting {} agents at {} Mbit/s behind {} Mbit/s…",
            links.servers, links.nic_mbit, links.downlink_mbit
        );
        fleet.begin()?;
        fleet.until_complete(SETTLE_MAX)?;
        fleet.apply(POLICY)?;
        let dir = dir.to_owned();
        let mut zone = Zone { fleet, network, links, origin, releases: 0, past: Vec::new(), dir };
        let first = zone.publish(1 << 20)?;
        zone.send(&first, |_| Ok(Vec::new()))?;
        let idle = cpu::seconds_of(zone.agent_pids());
        std::thread::sleep(IDLE);
        let idle = cpu::seconds_of(zone.agent_pids()).since(idle);
        eprintln!(
            "  at rest the agents use {:.2} CPU seconds in ten ({:.2} user, {:.2} system)",
            idle.all() * 10.0 / IDLE.as_secs_f64(),
            idle.user * 10.0 / IDLE.as_secs_f64(),
            idle.system * 10.0 / IDLE.as_secs_f64(),
        );
        Ok(zone)
    }

    pub(super) fn relink(&mut self, downlink_mbit: u32, nic_mbit: u32) -> Result<()> {
        self.network.limit_downlink(downlink_mbit)?;
        for name in self.servers() {
            self.network.limit(&name, nic_mbit, nic_mbit)?;
        }
        self.links = Links { downlink_mbit, nic_mbit, ..self.links };
        Ok(())
    }

    pub(super) fn servers(&self) -> Vec<String> {
        self.fleet.agents().keys().cloned().collect()
    }

    /// Directory for files of a measurement, next to the fleet's.
    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// The file of an artifact at the origin.
    pub(super) fn original(&self, root: &str) -> PathBuf {
        self.fleet.context_dir().join("repository/blobs").join(root)
    }

    pub(super) fn artifacts(&self, server: &str) -> PathBuf {
        self.fleet.agents()[server].dir.join("data/artifacts")
    }

    pub(super) fn publish(&mut self, bytes: usize) -> Result<Ready> {
        let dist = self.dir.join("dist");
        fs::create_dir_all(&dist)?;
        fs::write(dist.join("payload"), noise(bytes, &self.releases.to_string()))?;
        // A delta between random bytes only costs time.
        let ready = self.publish_folder(&dist, &["--no-deltas"]);
        fs::remove_dir_all(&dist)?;
        ready
    }

    pub(super) fn publish_folder(&mut self, dist: &Path, more: &[&str]) -> Result<Ready> {
        self.releases += 1;
        let version = format!("1.0.{}", self.releases);
        let path = dist.display().to_string();
        let mut args = vec!["publish", &path, "--app", watch::APP, "--version", &version];
        args.extend(["--platform", PLATFORM, "-o", "json"]);
        args.extend(more);
        let answer: serde_json::Value = serde_json::from_str(&self.fleet.run(&args)?)?;
        let root = answer["artifact"].as_str().context("publish names the artifact")?.to_owned();
        let bytes = answer["length"].as_u64().context("publish tells the length")?;
        Ok(Ready { version, root, bytes })
    }

    /// Publishes a release of `mib` MiB and transfers it to all servers.
    pub(super) fn transfer(&mut self, what: &str, mib: usize) -> Result<Transfer> {
        self.transfer_with(what, mib, |_| Ok(Vec::new()))
    }

    /// Like [`Zone::transfer`]; `meanwhile` runs once bytes flow, and returns the servers not to
    /// wait for.
    pub(super) fn transfer_with(
        &mut self,
        what: &str,
        mib: usize,
        meanwhile: impl FnOnce(&mut Zone) -> Result<Vec<String>>,
    ) -> Result<Transfer> {
        let ready = self.publish(mib << 20)?;
        let transfer = self.send(&ready, meanwhile)?;
        transfer.tell(what);
        ensure!(transfer.wrong_units == 0, "{} units are wrong", transfer.wrong_units);
        Ok(transfer)
    }

    /// Points the channel to a release and waits until all servers run it.
    pub(super) fn run_everywhere(&mut self, ready: &Ready) -> Result<()> {
        // A running release is still needed.
        self.past.retain(|root| *root != ready.root);
        self.fleet.run(&["channel", "set", watch::APP, "stable", &ready.version])?;
        let patience = Duration::from_secs_f64(self.links.limit_s(ready.bytes)) + SETTLE_MAX;
        self.fleet.until(GROUP, patience, |status| watch::runs(status, &ready.version)).map(drop)
    }

    /// Points the channel to a release, transfers its bytes (and does nothing else) to all servers,
    /// and waits until they have it.
    pub(super) fn send(
        &mut self,
        ready: &Ready,
        meanwhile: impl FnOnce(&mut Zone) -> Result<Vec<String>>,
    ) -> Result<Transfer> {
        self.forget_past()?;
        let limit_s = self.links.limit_s(ready.bytes);
        let patience = Duration::from_secs_f64(limit_s * TRANSFER_LIMITS_MAX) + TRANSFER_EXTRA;
        let before = self.network.downlink_bytes()?;
        let carried_before = self.sent_bytes()?;
        let cpu_before = cpu::seconds_of(self.agent_pids());
        let (begun, begun_at) = (Instant::now(), now_s());
        self.fleet.run(&["channel", "set", watch::APP, "stable", &ready.version])?;
        let channel_at = now_s();
        // The leader has ordered all servers to fetch; nothing more should happen.
        self.fleet.until(GROUP, SETTLE_MAX, |status| {
            watch::app(status).is_some_and(|app| {
                app.target.as_ref().is_some_and(|target| target.as_str() == ready.version)
            })
        })?;
        self.fleet.run(&["rollout", "pause", GROUP, "--reason", "only bytes are measured"])?;
        while self.network.downlink_bytes()? < before + BEGUN_BYTES.min(ready.bytes / 2) {
            ensure!(begun.elapsed() < SETTLE_MAX, "nothing crosses the downlink");
            std::thread::sleep(LOOK_EVERY);
        }
        let lost: BTreeSet<String> = meanwhile(self)?.into_iter().collect();
        let names = self.servers().into_iter().filter(|name| !lost.contains(name));
        let files: Vec<(String, PathBuf)> = names
            .map(|name| {
                let file = self.artifacts(&name).join(&ready.root);
                (name, file)
            })
            .collect();
        wait_for(&files, begun, patience)?;
        let wan_bytes = self.network.downlink_bytes()? - before;
        let cpu = cpu::seconds_of(self.agent_pids()).since(cpu_before);
        let first = self.first_asked(begun_at)?;
        let mut ends = BTreeMap::new();
        for (name, file) in &files {
            // The rename to its final name is the last change of the file.
            let about = fs::metadata(file)?;
            let at = about.ctime() as f64 + about.ctime_nsec() as f64 / 1e9;
            ends.insert(name.clone(), at - first);
        }
        let carried = self.sent_bytes()?.into_iter().zip(carried_before);
        let carried = carried.map(|(now, before)| (now - before) as f64 / ready.bytes as f64);
        let carried = carried.collect();
        let wrong_units = self.wrong_units(ready, &files)?;
        self.past.push(ready.root.clone());
        let last = ends.values().copied().fold(0.0, f64::max) + first;
        let wan = wan_bytes as f64 / ready.bytes as f64;
        let since_channel_s = last - channel_at;
        Ok(Transfer { limit_s, ends, since_channel_s, wan, wan_bytes, cpu, carried, wrong_units })
    }

    fn sent_bytes(&self) -> Result<Vec<u64>> {
        self.servers().iter().map(|name| self.network.sent_bytes(name)).collect()
    }

    pub(super) fn agent_pids(&self) -> Vec<u32> {
        self.servers().iter().filter_map(|name| self.fleet.agent_pid(name)).collect()
    }

    /// Time of the first request to the origin for an artifact or delta after `after`; both as Unix
    /// time in seconds.
    fn first_asked(&self, after: f64) -> Result<f64> {
        let answered = self.origin.answered()?;
        let of = answered
            .iter()
            .filter(|request| request.at >= after && request.path.starts_with("/blobs/"));
        of.map(|request| request.at).reduce(f64::min).context("the origin was never asked")
    }

    /// Units on the servers that differ from the original.
    fn wrong_units(&self, ready: &Ready, files: &[(String, PathBuf)]) -> Result<usize> {
        let original = fs::read(self.original(&ready.root))?;
        let mut wrong = 0;
        for (name, file) in files {
            let held = fs::read(file)?;
            ensure!(held.len() == original.len(), "{name} holds {} bytes", held.len());
            let units = held.chunks(UNIT_BYTES).zip(original.chunks(UNIT_BYTES));
            wrong += units.filter(|(held, original)| held != original).count();
        }
        Ok(wrong)
    }

    /// Frees the memory of finished transfers: their releases are never activated or requested
    /// again.
    fn forget_past(&mut self) -> Result<()> {
        for root in std::mem::take(&mut self.past) {
            for name in self.servers() {
                let file = self.artifacts(&name).join(&root);
                if file.exists() {
                    fs::remove_file(file)?;
                }
            }
        }
        Ok(())
    }
}

/// Waits until all servers have their file.
fn wait_for(files: &[(String, PathBuf)], begun: Instant, patience: Duration) -> Result<()> {
    loop {
        let late = files.iter().filter(|(_, file)| !file.exists());
        let late: Vec<&str> = late.map(|(name, _)| name.as_str()).collect();
        if late.is_empty() {
            return Ok(());
        }
        ensure!(
            begun.elapsed() < patience,
            "not everywhere after {:.0} s; lacking at {}",
            begun.elapsed().as_secs_f64(),
            late.join(", ")
        );
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Wall clock, as Unix time in seconds.
pub(super) fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
#[path = "zone_test.rs"]
mod zone_test;
