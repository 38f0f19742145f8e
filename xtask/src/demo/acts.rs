//! The six acts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use cohort_core::phase::PhaseName;
use cohort_core::refused::WhyRefused;
use cohort_core::waiting::WaitingOn;
use cohort_trial::release::WebRelease;
use cohort_trial::replace_mirror;
use cohort_trial::watch::{app, holds, refuses, runs, waits};
use cohort_wire::agent::GroupStatus;

use super::{BALLAST_BYTES, PLATFORMS, Stage, breathe};

/// Upper bound for an act on a slow machine.
const ACT_MAX: Duration = Duration::from_secs(300);

/// How an act should end in a group.
pub(crate) enum End {
    /// Every server runs this version.
    Runs(String),
    /// Held: rolled back from the first version to the second.
    Holds(String, String),
    /// Runs this version, because that group found the release bad.
    Spared(String, String),
    /// Runs this version, and refuses a release for such a reason.
    Refuses(String, fn(&WhyRefused) -> bool),
}

impl End {
    pub(crate) fn reached(&self, status: &GroupStatus) -> bool {
        match self {
            End::Runs(version) => runs(status, version),
            End::Holds(rejected, running) => holds(status, rejected, running),
            End::Spared(version, by) => {
                let spared = |on: &WaitingOn| match on {
                    WaitingOn::VerdictElsewhere { group, .. } => group.as_str() == by,
                    _ => false,
                };
                runs(status, version) && waits(status, spared)
            }
            End::Refuses(version, why) => runs(status, version) && refuses(status, why),
        }
    }
}

impl Stage {
    fn all(&self, end: impl Fn(&str) -> End) -> BTreeMap<String, End> {
        self.group_names().into_iter().map(|group| (group.clone(), end(&group))).collect()
    }

    fn act(&self, number: u32, title: &str) {
        super::say(self.exit, &format!("\nact {number}: {title}"));
        breathe(self.exit);
    }

    pub(crate) fn play(&mut self, policy: &str) -> Result<()> {
        self.act(1, "1.0.0 goes from empty to running everywhere");
        self.fleet.publish(&WebRelease::new("1.0.0"), &PLATFORMS)?;
        self.fleet.apply(policy)?;
        let ends = self.all(|_| End::Runs("1.0.0".into()));
        self.expect(1, "1.0.0", ACT_MAX, &ends)?;
        self.keep_old_repository()?;

        self.act(2, "1.1.0 is published: every group, zone-b after zone-a");
        let large = WebRelease::new("1.1.0").ballast(BALLAST_BYTES);
        self.fleet.publish(&large, &PLATFORMS)?;
        let ends = self.all(|_| End::Runs("1.1.0".into()));
        self.expect(2, "1.1.0", ACT_MAX, &ends)?;

        self.act(3, "1.1.1, and the leader of intel.zone-a is killed in the middle of it");
        self.fleet.publish(&WebRelease::new("1.1.1"), &PLATFORMS)?;
        self.kill_a_leader()?;
        let ends = self.all(|_| End::Runs("1.1.1".into()));
        self.expect(3, "1.1.1", ACT_MAX, &ends)?;

        self.act(4, "1.2.0 fails its pre-flight check on amd");
        let bad = WebRelease::new("1.2.0").fault("unhealthy_on = [\"amd\"]");
        self.fleet.publish(&bad, &PLATFORMS)?;
        let ends = self.all(|group| match group {
            "amd.zone-a" => End::Holds("1.2.0".into(), "1.1.1".into()),
            "amd.zone-b" => End::Spared("1.1.1".into(), "amd.zone-a".into()),
            _ => End::Runs("1.2.0".into()),
        });
        self.expect(4, "1.2.0", ACT_MAX, &ends)?;

        self.act(5, "foreign keys, and an old repository: both refused, and status says so");
        self.stranger()?;
        self.replay()?;

        self.act(6, "1.2.1 fixes it");
        self.replace_mirrors(&self.fleet.context_dir().join("repository"))?;
        self.fleet.publish(&WebRelease::new("1.2.1"), &PLATFORMS)?;
        let ends = self.all(|_| End::Runs("1.2.1".into()));
        self.expect(6, "1.2.1", ACT_MAX, &ends)
    }

    /// Kills the leader mid-rollout and restarts its agent, which catches up.
    fn kill_a_leader(&mut self) -> Result<()> {
        let group = "intel.zone-a";
        let status = self.fleet.until(group, Duration::from_secs(60), |status| {
            app(status).is_some_and(|app| app.wave >= 2 && app.state != PhaseName::Running)
        })?;
        let leader = status.leader.clone().context("a group in a wave has a leader")?;
        let step = app(&status).map_or(0, |app| app.wave);
        super::say(self.exit, &format!("kill -9 {leader}, the leader, in wave {step}"));
        self.fleet.kill_agent(leader.as_str());
        let status = self.fleet.until(group, Duration::from_secs(30), |status| {
            status.linearizable && status.leader.as_ref().is_some_and(|now| *now != leader)
        })?;
        if let Some(next) = &status.leader {
            super::say(self.exit, &format!("{next} is the leader now and resumes"));
        }
        self.fleet.start_agent(leader.as_str())
    }

    fn old_repository(&self) -> PathBuf {
        self.fleet.dir().join("old-repository")
    }

    /// Something an attacker might keep: an old copy of the repository, correctly signed.
    fn keep_old_repository(&self) -> Result<()> {
        replace_mirror(&self.old_repository(), &self.fleet.context_dir().join("repository"))
    }

    fn current(&self, group: &str) -> &'static str {
        if group.starts_with("amd") { "1.1.1" } else { "1.2.0" }
    }

    /// Puts another repository, signed with foreign keys, on every mirror.
    fn stranger(&mut self) -> Result<()> {
        let dir = self.fleet.dir().join("stranger");
        let dir_text = dir.display().to_string();
        self.fleet.run(&["init", "--dir", &dir_text, "--hub-address", "127.0.0.1:1"])?;
        let release = WebRelease::new("6.6.6");
        let dist = release.write(&dir, self.fleet.programs())?;
        let (repository, keys) = (dir.join("repository"), dir.join("keys"));
        for platform in PLATFORMS {
            self.fleet.run(&[
                "publish",
                &dist.display().to_string(),
                "--app",
                "web",
                "--version",
                "6.6.6",
                "--platform",
                platform,
                "--channel",
                "stable",
                "--repository",
                &repository.display().to_string(),
                "--keys",
                &keys.display().to_string(),
            ])?;
        }
        self.replace_mirrors(&repository)?;
        self.expect_refusal("6.6.6 with foreign keys", |why| {
            matches!(why, WhyRefused::WrongSignature { .. })
        })
    }

    /// Puts the repository of act 1 back: signed by the right keys, but old.
    fn replay(&mut self) -> Result<()> {
        self.replace_mirrors(&self.old_repository())?;
        self.expect_refusal("1.0.0 replayed", |why| matches!(why, WhyRefused::Older { .. }))
    }

    fn expect_refusal(&mut self, release: &str, why: fn(&WhyRefused) -> bool) -> Result<()> {
        let ends = self.group_names().into_iter().map(|group| {
            let end = match group.as_str() {
                // It stays held, and also shows the refusal.
                "amd.zone-a" => End::Holds("1.2.0".into(), "1.1.1".into()),
                _ => End::Refuses(self.current(&group).into(), why),
            };
            (group, end)
        });
        let ends: BTreeMap<String, End> = ends.collect();
        self.expect(5, release, Duration::from_secs(60), &ends)
    }

    fn replace_mirrors(&self, by: &Path) -> Result<()> {
        (0..self.fleet.mirrors())
            .try_for_each(|index| replace_mirror(self.fleet.mirror_dir(index), by))
    }
}
