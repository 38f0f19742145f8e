//! Publishing a large directory and its next version, which a server unpacks.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use cohort_base::events;
use cohort_trial::logs::Logs;
use cohort_trial::{Fleet, Programs};

use super::Better::{Higher, Lower};
use super::{PLATFORM, Row, options};

/// Size of one file of the directory.
const FILE_BYTES: usize = 4 << 20;
/// Bytes that are changed between the versions, each place on its own.
const CHANGES: u64 = 2_000;
/// What is inserted in the middle of one file.
const INSERTION: &[u8] = b"a new function, or a longer text";
/// How often the publisher's memory is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Until the server has fetched and unpacked the release.
const PATIENCE: Duration = Duration::from_secs(300);
/// The release has no service, so nothing is checked.
const POLICY: &str = "app = \"web\"\nchannel = \"stable\"\ncheck = []\n";

#[derive(Debug, Clone, Args)]
pub(super) struct PublishArgs {
    /// Size of the directory, in MiB
    #[arg(long, default_value_t = 1024)]
    mib: u64,
}

/// Publishes a directory and its next version to a repository on this disk, before a fleet of one
/// server starts, and unpacks the next version there.
pub(super) fn measure(of: &PublishArgs, programs: &Programs, dir: &Path) -> Result<Vec<Row>> {
    let mut fleet = Fleet::lay_out(options(programs, dir.join("fleet"), 1))?;
    let dist = dir.join("dist");
    fs::create_dir_all(&dist)?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let files = (of.mib << 20) / FILE_BYTES as u64;
    for nth in 0..files {
        File::create(path(&dist, nth))?.write_all(&random.block())?;
    }
    let first = publish(&fleet, &dist, "1.0.0")?;
    for _ in 0..CHANGES {
        let file = OpenOptions::new().write(true).open(path(&dist, random.next() % files))?;
        file.write_all_at(&random.next().to_le_bytes(), random.next() % FILE_BYTES as u64 / 2)?;
    }
    let longer = path(&dist, files / 2);
    let bytes = fs::read(&longer)?;
    let (begin, end) = bytes.split_at(bytes.len() / 2);
    fs::write(&longer, [begin, INSERTION, end].concat())?;
    let second = publish(&fleet, &dist, "1.1.0")?;
    let unpacked_s = unpack(&mut fleet, "1.1.0")?;
    fleet.stop()?;
    let mib = of.mib as f64;
    let ratio = second.delta.map(|delta| second.length / delta);
    Ok(vec![
        Row::new("publish.first_mib_per_s", Some(mib / first.s), "MiB/s", Some(100.0), Higher),
        Row::new("publish.delta_s_per_gib", Some(second.s * 1024.0 / mib), "s", Some(15.0), Lower),
        Row::new("publish.delta_ratio", ratio, "×", Some(200.0), Higher),
        Row::new("publish.peak_mib", Some(second.peak_mib), "MiB", Some(300.0), Lower),
        Row::new("unpack.mib_per_s", Some(mib / unpacked_s), "MiB/s", Some(150.0), Higher),
    ])
}

fn path(dist: &Path, nth: u64) -> PathBuf {
    dist.join(format!("part-{nth:04}"))
}

/// One publishing.
struct Published {
    s: f64,
    /// Most memory that the publisher has used.
    peak_mib: f64,
    /// Of the artifact, in bytes.
    length: f64,
    /// Of the delta from the version before; `None` if there is none.
    delta: Option<f64>,
}

fn publish(fleet: &Fleet, dist: &Path, version: &str) -> Result<Published> {
    let begun = Instant::now();
    let mut child = fleet
        .command(&["publish", "--app", "web", "--version", version, "--platform", PLATFORM])
        .args(["-o", "json"])
        .arg(dist)
        .stdout(Stdio::piped())
        .spawn()?;
    let status = format!("/proc/{}/status", child.id());
    let mut peak_kib = 0.0_f64;
    while child.try_wait()?.is_none() {
        let text = fs::read_to_string(&status).unwrap_or_default();
        let peak = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let peak = peak.and_then(|peak| peak.trim().strip_suffix(" kB")?.parse().ok());
        peak_kib = peak_kib.max(peak.unwrap_or(0.0));
        std::thread::sleep(LOOK_EVERY);
    }
    let s = begun.elapsed().as_secs_f64();
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "publishing {version} failed");
    let answer: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let length = answer["length"].as_f64().context("the answer has a length")?;
    let delta = answer["deltas"][0]["length"].as_f64();
    eprintln!("  {version}: {s:.1} s, {} deltas {}", answer["length"], answer["deltas"]);
    Ok(Published { s, peak_mib: peak_kib / 1024.0, length, delta })
}

/// Starts the fleet, and returns how long its server takes to unpack the version, in seconds: its
/// step `prepare`, by its log. That includes comparing the digest, and the syncs.
fn unpack(fleet: &mut Fleet, version: &str) -> Result<f64> {
    fleet.begin()?;
    fleet.until_complete(PATIENCE)?;
    let mut logs = Logs::from_now(fleet);
    fleet.run(&["channel", "set", "web", "stable", version, "--create"])?;
    fleet.apply(POLICY)?;
    let mut at_ms = |event: &str| -> Result<f64> {
        let (_, line) = logs.wait_for("the release to be unpacked", PATIENCE, |_, line| {
            line.is(event) && line.field("step") == Some("prepare")
        })?;
        Ok(line.at_ms)
    };
    let begun_ms = at_ms(events::STEP_BEGIN)?;
    let s = (at_ms(events::STEP_DONE)? - begun_ms) / 1000.0;
    eprintln!("  {version}: unpacked in {s:.1} s");
    Ok(s)
}

/// The same numbers in every run (xorshift).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A file that compresses to two thirds or so: random bytes, and as many zeros.
    fn block(&mut self) -> Vec<u8> {
        let words = (0..FILE_BYTES / 8).map(|nth| if nth % 3 == 0 { 0 } else { self.next() });
        words.flat_map(u64::to_le_bytes).collect()
    }
}
