//! The demo: a whole fleet on this machine, a story in six acts, using only public commands and
//! signals.

mod acts;
mod view;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use cohort_trial::{Fleet, FleetOptions};
use cohort_wire::agent::TransferStatus;
use serde::Serialize;

use crate::build::programs;

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Run unattended: print one JSON object per group and act; exit 0 only if every act ended as
    /// expected and no process is left
    #[arg(long)]
    exit: bool,
    /// Number of agents, spread over four groups (at least 12)
    #[arg(long, default_value_t = 40)]
    agents: usize,
    /// Keep the fleet running until Ctrl-C
    #[arg(long, conflicts_with = "exit")]
    keep: bool,
    /// Directory for everything [default: a temporary one, removed on success]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// How one act ended in one group.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Outcome {
    act: u32,
    group: String,
    release: String,
    state: String,
    ok: bool,
    seconds: f64,
    #[serde(flatten)]
    moved: Option<Moved>,
}

/// Bytes needed to bring a release to all servers of a group.
#[derive(Debug, Clone, Copy, Default, Serialize)]
struct Moved {
    release_bytes: u64,
    mirror_bytes: u64,
    /// Bytes from server to server.
    peer_bytes: u64,
}

impl Moved {
    /// Whether mirrors sent the release about once, however many servers there are. Up to half
    /// again is allowed, for a change of leader and protocol overhead.
    fn once(self) -> bool {
        self.mirror_bytes > 0 && self.mirror_bytes * 2 <= self.release_bytes * 3
    }

    /// A release may have several transfers: whole for some servers, a delta for others.
    fn of<'a>(transfers: impl Iterator<Item = &'a TransferStatus>) -> Moved {
        transfers.fold(Moved::default(), |sum, transfer| Moved {
            release_bytes: sum.release_bytes + transfer.length_bytes,
            mirror_bytes: sum.mirror_bytes + transfer.mirror_bytes,
            peer_bytes: sum.peer_bytes + transfer.peer_bytes,
        })
    }

    /// Every new leader's figures start at zero: keeps the highest seen.
    fn keep_most(&mut self, now: Moved) {
        self.release_bytes = self.release_bytes.max(now.release_bytes);
        self.mirror_bytes = self.mirror_bytes.max(now.mirror_bytes);
        self.peer_bytes = self.peer_bytes.max(now.peer_bytes);
    }
}

/// The fleet, and the outcomes of the acts so far.
pub(crate) struct Stage {
    fleet: Fleet,
    outcomes: Vec<Outcome>,
    exit: bool,
    begun: Instant,
}

/// Platforms and zones of the four groups.
pub(crate) const PLATFORMS: [&str; 2] = ["intel", "amd"];
pub(crate) const ZONES: [&str; 2] = ["zone-a", "zone-b"];

/// Download rate per server, to simulate a network: on one machine, bytes would move too fast to
/// watch.
const DOWNLOAD_LIMIT: &str = "100Mbit/s";

/// Makes the release of one act large enough to be in transit for about a second.
pub(crate) const BALLAST_BYTES: usize = 12 << 20;

/// The act with the large release: its transfers are counted.
const COUNTED_ACT: u32 = 2;

/// The policy of the demo: a tenth at a time, one zone after another.
const POLICY: &str = r#"
app = "web"
channel = "stable"

[update]
max_parallel = "10%"
min_healthy_time = "1s"
healthy_deadline = "20s"
progress_deadline = "60s"
max_unavailable = "10%"
surroundings_allowed = "10%"
confirm_within = "30s"
unreachable_after = "20s"

[[check]]
type = "http"
path = "/healthz"
expect_status = 200
expect_body = "ok"
interval = "200ms"
timeout = "1s"

[[stage]]
zone = "zone-a"

[[stage]]
zone = "zone-b"
"#;

/// Plays the story. False if an act did not end as expected.
pub(crate) fn run(args: &DemoArgs) -> Result<bool> {
    ensure!(args.agents >= 12, "--agents {}: at least 12, three a group", args.agents);
    say(args.exit, "building…");
    let programs = programs(false)?;
    let dir = folder(args)?;
    let groups = PLATFORMS
        .iter()
        .flat_map(|platform| ZONES.iter().map(move |zone| (*platform, *zone)))
        .enumerate()
        .map(|(index, (platform, zone))| {
            let extra = usize::from(index < args.agents % 4);
            (platform.to_owned(), zone.to_owned(), args.agents / 4 + extra)
        })
        .collect();
    let options = FleetOptions {
        dir: dir.clone(),
        programs,
        groups,
        mirrors: 2,
        agent_toml: format!("download_limit = \"{DOWNLOAD_LIMIT}\"\n"),
    };
    say(
        args.exit,
        &format!("starting {} agents in four groups, in {}", args.agents, dir.display()),
    );
    let mut fleet = Fleet::lay_out(options)?;
    fleet.end_on_signals();
    fleet.begin()?;
    let mut stage = Stage { fleet, outcomes: Vec::new(), exit: args.exit, begun: Instant::now() };
    let played = stage.play(POLICY);
    if let Err(error) = &played {
        eprintln!("error: {error:#}");
    }
    let mut well = played.is_ok() && stage.outcomes.iter().all(|outcome| outcome.ok);
    if args.keep {
        keep(&stage);
    }
    stage.fleet.stop()?;
    let left = stage.fleet.processes_left();
    if !left.is_empty() {
        eprintln!("error: processes are left: {left:?}");
        well = false;
    }
    if args.dir.is_none() && well {
        let _ = std::fs::remove_dir_all(&dir);
    } else {
        say(args.exit, &format!("logs are in {}", dir.join("logs").display()));
    }
    Ok(well)
}

/// The fleet's directory, empty: the one named, else a temporary one.
fn folder(args: &DemoArgs) -> Result<PathBuf> {
    let temporary = || std::env::temp_dir().join(format!("cohort-demo-{}", std::process::id()));
    let dir = args.dir.clone().unwrap_or_else(temporary);
    ensure!(
        !dir.exists() || std::fs::read_dir(&dir)?.next().is_none(),
        "{} is not empty; name another --dir, or remove it",
        dir.display()
    );
    std::fs::create_dir_all(&dir)?;
    Ok(dir.canonicalize()?)
}

/// For people: standard output, or standard error with `--exit`.
fn say(exit: bool, text: &str) {
    if exit {
        eprintln!("{text}");
    } else {
        println!("{text}");
    }
}

/// Keeps the fleet running until Ctrl-C.
fn keep(stage: &Stage) {
    let fleet = &stage.fleet;
    println!("\nThe fleet runs on. In another terminal:\n");
    println!("  export COHORT_CONTEXT={}", fleet.context_dir().display());
    let bin = fleet.programs().cohort.parent().unwrap_or(fleet.dir());
    println!("  export PATH={}:$PATH", bin.display());
    println!("  cohort status --watch");
    println!("  cohort why intel.zone-a");
    println!("  cohort rollout history intel.zone-a");
    println!("  cohort group show intel.zone-a");
    println!("  cohort kill on --reason 'coffee first'; cohort kill off");
    println!("\nPress Enter to stop it.");
    let mut line = String::new();
    let _ = std::io::stdin().read_line(&mut line);
}

impl Stage {
    fn group_names(&self) -> Vec<String> {
        self.fleet.groups()
    }

    /// Waits until every group has reached its end of the act, and records each outcome.
    fn expect(
        &mut self,
        act: u32,
        release: &str,
        patience: Duration,
        ends: &BTreeMap<String, acts::End>,
    ) -> Result<()> {
        let begun = Instant::now();
        let outcome = |group: &str, state: &str| Outcome {
            act,
            group: group.to_owned(),
            release: release.to_owned(),
            state: state.to_owned(),
            ok: false,
            seconds: (begun.elapsed().as_secs_f64() * 10.0).round() / 10.0,
            moved: None,
        };
        let mut open: Vec<String> = ends.keys().cloned().collect();
        let mut shown = view::View::new(self.exit);
        let mut seen: BTreeMap<String, String> = BTreeMap::new();
        let mut moved: BTreeMap<String, Moved> = BTreeMap::new();
        while !open.is_empty() && begun.elapsed() < patience {
            let mut statuses = Vec::new();
            for group in self.group_names() {
                let Ok(status) = self.fleet.status(&group) else { continue };
                let state = cohort_trial::watch::app(&status)
                    .map_or("unknown".to_owned(), |app| app.state.to_string());
                seen.insert(group.clone(), state);
                let of_this = |transfer: &&TransferStatus| {
                    transfer.version.as_ref().is_some_and(|version| version.as_str() == release)
                };
                let now = Moved::of(status.transfers.iter().filter(of_this));
                moved.entry(group.clone()).or_default().keep_most(now);
                if open.contains(&group) && ends[&group].reached(&status) {
                    open.retain(|name| *name != group);
                    let counted = (act == COUNTED_ACT).then(|| moved.get(&group).copied());
                    let once = counted.is_none_or(|moved| moved.is_some_and(Moved::once));
                    if !once {
                        eprintln!(
                            "act {act}: {group}: mirrors sent it more than once: {counted:?}"
                        );
                    }
                    let told = outcome(&group, &seen[&group]);
                    self.note(Outcome { ok: once, moved: counted.flatten(), ..told });
                }
                statuses.push(status);
            }
            shown.draw(act, release, self.begun.elapsed(), statuses);
            std::thread::sleep(Duration::from_millis(400));
        }
        for group in open {
            let state = seen.get(&group).cloned().unwrap_or_else(|| "unknown".into());
            self.note(outcome(&group, &state));
            if let Ok(status) = self.fleet.status(&group) {
                eprintln!("act {act}: {}", cohort_trial::watch::line(&status));
            }
        }
        Ok(())
    }

    fn note(&mut self, outcome: Outcome) {
        if self.exit {
            println!("{}", serde_json::to_string(&outcome).unwrap_or_default());
        } else if !std::io::stdout().is_terminal() {
            println!(
                "act {}: {} is {} after {} s: {}",
                outcome.act,
                outcome.group,
                outcome.state,
                outcome.seconds,
                if outcome.ok { "as expected" } else { "NOT AS EXPECTED" }
            );
        }
        self.outcomes.push(outcome);
    }
}

/// On a terminal only, pauses so that a person can read.
pub(crate) fn breathe(exit: bool) {
    if !exit && std::io::stdout().is_terminal() {
        std::thread::sleep(Duration::from_secs(3));
    }
}

#[cfg(test)]
#[path = "demo_test.rs"]
mod demo_test;
