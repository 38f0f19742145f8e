//! A fleet for one test, and the helpers that all tests share.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use cohort_base::events;
use cohort_trial::logs::Logs;
use cohort_trial::release::WebRelease;
use cohort_trial::watch::runs;
use cohort_trial::{Fleet, FleetOptions, Programs};

/// The group of single-group tests.
pub(crate) const GROUP: &str = "intel.zone-a";
/// The platform of all tests.
pub(crate) const PLATFORM: &str = "intel";

/// Timeout for any group operation: generous, because tests share the machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// The check of the example service.
const CHECK: &str = r#"
[[check]]
type = "http"
path = "/healthz"
expect_status = 200
expect_body = "ok"
interval = "100ms"
timeout = "2s"
"#;

/// A policy for the example service, from the lines of `[update]` and those after the check.
pub(crate) fn policy(update: &str, more: &str) -> String {
    format!("app = \"web\"\nchannel = \"stable\"\n\n[update]\n{update}\n{CHECK}\n{more}")
}

/// One server at a time, with short times.
pub(crate) const ONE_BY_ONE: &str = r#"
max_parallel = 1
min_healthy_time = "300ms"
healthy_deadline = "20s"
progress_deadline = "60s"
max_unavailable = 1
confirm_within = "60s"
unreachable_after = "30s"
"#;

/// The same with longer waves, so that a test has time to act in the middle of one.
pub(crate) fn one_by_one_slowly() -> String {
    ONE_BY_ONE.replace("\"300ms\"", "\"1500ms\"")
}

/// A fleet in its own directory, which is removed if the test passes.
pub(crate) struct Trial {
    fleet: Fleet,
    dir: PathBuf,
    passed: bool,
}

impl Deref for Trial {
    type Target = Fleet;

    fn deref(&self) -> &Fleet {
        &self.fleet
    }
}

impl DerefMut for Trial {
    fn deref_mut(&mut self) -> &mut Fleet {
        &mut self.fleet
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        if !self.passed {
            // Print the status before stopping anything.
            for group in self.fleet.groups() {
                if let Ok(status) = self.fleet.status(&group) {
                    eprintln!("{}", cohort_trial::watch::line(&status));
                }
            }
            eprintln!("the fleet's files are in {}", self.dir.display());
        }
        let _ = self.fleet.stop();
        if self.passed {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}

/// How a test's fleet differs from the default.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// Servers in `zone-a`.
    pub servers: usize,
    /// Servers in `zone-b`.
    pub servers_b: usize,
    /// Mirrors.
    pub mirrors: usize,
    /// Extra lines for every `agent.toml`.
    pub agent_toml: String,
}

impl Wanted {
    /// The fleet's options, in a new directory.
    pub(crate) fn options(&self, name: &str) -> Result<FleetOptions> {
        let folder = format!("cohort-test-{name}-{}", std::process::id());
        let dir = std::env::temp_dir().join(folder);
        ensure!(!dir.exists(), "{} is left over from another run; remove it", dir.display());
        std::fs::create_dir_all(&dir)?;
        let dir = dir.canonicalize()?;
        let zones = [("zone-a", self.servers), ("zone-b", self.servers_b)];
        let groups = zones.iter().filter(|(_, servers)| *servers > 0);
        Ok(FleetOptions {
            dir,
            programs: Programs {
                cohort: program("cohort")?,
                web: program("cohort-example-web")?,
                artifact: example(),
            },
            groups: groups
                .map(|(zone, servers)| (PLATFORM.to_owned(), (*zone).to_owned(), *servers))
                .collect(),
            mirrors: self.mirrors,
            agent_toml: self.agent_toml.clone(),
        })
    }
}

impl Trial {
    /// A group of `servers` servers that reads the hub's own repository.
    pub(crate) fn of(name: &str, servers: usize) -> Result<Trial> {
        Trial::start(name, &Wanted { servers, ..Wanted::default() })
    }

    pub(crate) fn start(name: &str, wanted: &Wanted) -> Result<Trial> {
        let options = wanted.options(name)?;
        let dir = options.dir.clone();
        Trial::around(Fleet::lay_out(options)?, dir)
    }

    /// Starts a fleet whose files exist.
    pub(crate) fn around(fleet: Fleet, dir: PathBuf) -> Result<Trial> {
        let mut trial = Trial { fleet, dir, passed: false };
        // A test killed by its timeout leaves no process behind.
        trial.end_on_signals();
        trial.begin()?;
        trial.until_complete(PATIENCE)?;
        Ok(trial)
    }

    /// Stops the fleet, and fails if a process is left.
    pub(crate) fn pass(mut self) -> Result<()> {
        self.fleet.stop()?;
        let left = self.fleet.processes_left();
        ensure!(left.is_empty(), "processes are left: {left:?}");
        self.passed = true;
        Ok(())
    }

    /// Applies a policy and rolls out the first release.
    pub(crate) fn first_release(&self, policy: &str, release: &WebRelease) -> Result<()> {
        self.publish(release, &[PLATFORM])?;
        self.apply(policy)?;
        for group in self.groups() {
            self.until(&group, PATIENCE, |status| runs(status, &release.version))?;
        }
        Ok(())
    }

    /// Publishes a release and waits until the group runs it.
    pub(crate) fn roll_out(&self, release: &WebRelease) -> Result<()> {
        self.publish(release, &[PLATFORM])?;
        self.until(GROUP, PATIENCE, |status| runs(status, &release.version)).map(drop)
    }

    /// The names of all servers.
    pub(crate) fn servers(&self) -> Vec<String> {
        self.agents().keys().cloned().collect()
    }

    /// The server of the leader.
    pub(crate) fn who_leads(&self) -> Result<String> {
        let status =
            self.until(GROUP, PATIENCE, |status| status.linearizable && status.leader.is_some())?;
        Ok(status.leader.context("there is a leader")?.to_string())
    }

    /// Waits for another leader.
    pub(crate) fn until_another_leads(&self, than: &str) -> Result<String> {
        let status = self.until(GROUP, PATIENCE, |status| {
            status.linearizable && status.leader.as_ref().is_some_and(|now| now.as_str() != than)
        })?;
        Ok(status.leader.context("there is a leader")?.to_string())
    }

    /// Checks for two seconds that nothing is granted and no step starts.
    pub(crate) fn nothing_begins(&self) -> Result<()> {
        let logs = RefCell::new(Logs::from_now(self));
        throughout(Duration::from_secs(2), || {
            for (server, line) in logs.borrow_mut().news() {
                let begins = line.is(events::GRANTED) || line.is(events::STEP_BEGIN);
                ensure!(!begins, "{server}: {line}");
            }
            Ok(())
        })
    }

    /// Waits until a server's member has applied everything that the group had committed at the
    /// time of the call.
    pub(crate) fn until_caught_up(&self, server: &str) -> Result<()> {
        let commit = self.status(GROUP)?.commit as f64;
        until(&format!("{server} has caught up"), PATIENCE, || {
            self.figure(server, "cohort_raft_commit_index").is_ok_and(|known| known >= commit)
        })
    }
}

/// Waits for a condition.
pub(crate) fn until(what: &str, patience: Duration, mut done: impl FnMut() -> bool) -> Result<()> {
    let begun = Instant::now();
    while !done() {
        if begun.elapsed() > patience {
            bail!("timed out after {} s waiting until {what}", patience.as_secs());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Checks repeatedly for a while; fails at the first failure.
pub(crate) fn throughout(while_: Duration, look: impl Fn() -> Result<()>) -> Result<()> {
    let begun = Instant::now();
    while begun.elapsed() < while_ {
        look()?;
        std::thread::sleep(Duration::from_millis(100));
    }
    Ok(())
}

/// A program next to this test, as built by `cargo xtask test`.
fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let folder = own.parent().and_then(Path::parent).context("tests are in target/debug/deps")?;
    let path = folder.join(name);
    ensure!(path.exists(), "{} is not built; run cargo xtask test", path.display());
    Ok(path)
}

fn example() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/web/artifact")
}
