//! Kills the leader in each state of its group, one after the other. Every rollout still ends
//! correctly, each server is activated once per fence, and no more servers are out of service than
//! the policy allows.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::prober::{Prober, most_down};
use anyhow::{Context as _, Result, bail, ensure};
use cohort_base::events;
use cohort_core::phase::PhaseName;
use cohort_trial::logs::Logs;
use cohort_trial::release::WebRelease;
use cohort_trial::watch::{app, holds, runs};

use crate::trial::{GROUP, PATIENCE, PLATFORM, Trial, Wanted, policy};

const SERVERS: usize = 5;
const OUT_MAX: usize = 2;

/// Waves of one, two and two servers.
const UPDATE: &str = r#"
max_parallel = [1, 2]
min_healthy_time = "400ms"
healthy_deadline = "3s"
progress_deadline = "60s"
max_unavailable = 2
confirm_within = "60s"
bake_time = "300ms"
drain_time = "100ms"
unreachable_after = "60s"
"#;

/// What is in progress when the leader is killed.
enum Visit {
    /// Nothing is published yet.
    BeforeTheFirst,
    /// Idle.
    AtRest,
    /// A good release is rolling out.
    Forward,
    /// A bad release is rolling back.
    Back,
}

/// Exhaustive, so that a new state fails to compile here.
fn visit(state: PhaseName) -> Option<Visit> {
    Some(match state {
        PhaseName::Empty => Visit::BeforeTheFirst,
        PhaseName::Running => Visit::AtRest,
        PhaseName::Forward(_) => Visit::Forward,
        PhaseName::RollingBack | PhaseName::Held => Visit::Back,
        // `remove_app.rs` kills the leader then: nothing serves afterwards.
        PhaseName::Removing => return None,
    })
}

struct Story {
    trial: Trial,
    /// The last good version.
    good: String,
    /// Every release in order, and whether it was good.
    released: Vec<(String, bool)>,
    visited: BTreeSet<PhaseName>,
}

#[test]
fn at_each_state_of_the_group() -> Result<()> {
    let wanted = Wanted { servers: SERVERS, mirrors: 1, ..Wanted::default() };
    let mut story = Story {
        trial: Trial::start("leader-killed", &wanted)?,
        good: String::new(),
        released: Vec::new(),
        visited: BTreeSet::new(),
    };
    let prober = Prober::start(&story.trial.services());
    let states = || PhaseName::ALL.into_iter().filter(|state| visit(*state).is_some());
    for (number, state) in states().enumerate() {
        let begun = Instant::now();
        let version = format!("1.{number}.0");
        story.play(state, &version).with_context(|| format!("killed at {state}"))?;
        println!("{state}: finished after {:.1} s", begun.elapsed().as_secs_f64());
    }
    ensure!(story.visited == states().collect(), "visited: {:?}", story.visited);
    let seen = prober.stop();
    let (probed, said) = (most_down(&seen), most_down(&story.trial.said_by_all()?));
    ensure!(probed <= OUT_MAX, "{probed} servers were out at once: {seen:?}");
    ensure!(
        (1..=OUT_MAX).contains(&said),
        "{said} servers were out at once, by the services' own output"
    );
    for server in story.trial.servers() {
        story.once_per_fence(&server)?;
        story.none_skipped(&server)?;
    }
    story.trial.pass()
}

impl Story {
    fn play(&mut self, state: PhaseName, version: &str) -> Result<()> {
        for server in self.trial.servers() {
            self.trial.until_caught_up(&server)?;
        }
        let release = WebRelease::new(version);
        match visit(state).context("a state that is visited here")? {
            Visit::BeforeTheFirst => {
                self.trial.apply(&policy(UPDATE, ""))?;
                self.kill_at_rest(state)?;
                self.publish(&release, true)?;
            }
            Visit::AtRest => {
                self.kill_at_rest(state)?;
                self.publish(&release, true)?;
            }
            Visit::Forward => {
                // Enough bytes that the states before the waves last a moment.
                let release = release.ballast(4 << 20);
                self.kill_at(state, &release, true)?;
            }
            Visit::Back => {
                let release = release.fault("unhealthy_on = [\"intel\"]");
                self.kill_at(state, &release, false)?;
                self.trial.until(GROUP, PATIENCE, |status| holds(status, version, &self.good))?;
                return Ok(());
            }
        }
        self.trial.until(GROUP, PATIENCE, |status| runs(status, version))?;
        self.good = version.to_owned();
        Ok(())
    }

    fn publish(&mut self, release: &WebRelease, good: bool) -> Result<()> {
        self.released.push((release.version.clone(), good));
        self.trial.publish(release, &[PLATFORM])
    }

    fn kill_at_rest(&mut self, state: PhaseName) -> Result<()> {
        let status = self.trial.until(GROUP, PATIENCE, |status| {
            app(status).is_some_and(|app| app.state == state) && status.leader.is_some()
        })?;
        let leader = status.leader.context("there is a leader")?.to_string();
        self.trial.kill_agent(&leader);
        self.visited.insert(state);
        self.come_back(&leader)
    }

    /// Kills the leader as soon as any member logs that the group has reached the state.
    fn kill_at(&mut self, state: PhaseName, release: &WebRelease, good: bool) -> Result<()> {
        self.released.push((release.version.clone(), good));
        self.trial.publish_unseen(release, &[PLATFORM])?;
        let mut leader = self.trial.who_leads()?;
        let mut logs = Logs::from_now(&self.trial);
        self.trial.sync_mirrors()?;
        let begun = Instant::now();
        let mut came_to = None;
        let killed = 'watching: loop {
            for (server, line) in logs.news() {
                if line.is(events::RAFT_ROLE) && line.field("role") == Some("Leader") {
                    leader = server;
                } else if line.is(events::PHASE) && line.field("app") == Some("web") {
                    came_to = line.field("to").map(str::to_owned);
                    if came_to.as_deref() == Some(state.as_str()) {
                        self.trial.kill_agent(&leader);
                        break 'watching leader;
                    }
                }
            }
            if begun.elapsed() > PATIENCE {
                bail!("the group never reached {state}; last: {came_to:?}");
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        // How far the leader got before it died: a state may last less than a millisecond.
        let mut last = came_to;
        for (server, line) in logs.news() {
            if server == killed && line.is(events::PHASE) {
                last = line.field("to").map(str::to_owned);
            }
        }
        println!("{state}: {killed} killed, at {}", last.as_deref().unwrap_or("?"));
        ensure!(!good || last.as_deref() != Some("running"), "the rollout had already finished");
        self.visited.insert(state);
        self.come_back(&killed)
    }

    /// Waits for another leader, and restarts the killed agent.
    fn come_back(&mut self, killed: &str) -> Result<()> {
        self.trial.until_another_leads(killed)?;
        self.trial.start_agent(killed)
    }

    fn once_per_fence(&self, server: &str) -> Result<()> {
        let mut started: BTreeMap<String, usize> = BTreeMap::new();
        for line in self.trial.guarded(server)? {
            if line.event == "started" {
                *started.entry(line.key).or_default() += 1;
            }
        }
        ensure!(started.values().all(|count| *count == 1), "{server}: {started:?}");
        Ok(())
    }

    /// Every good release ran here exactly once; a bad one at most once, followed by its
    /// predecessor.
    fn none_skipped(&self, server: &str) -> Result<()> {
        let said = self.trial.said(server)?;
        let starts: Vec<&str> = said
            .iter()
            .filter(|line| line.event == "start")
            .map(|line| line.version.as_str())
            .collect();
        let mut rest = starts.iter().copied().peekable();
        let mut before = "";
        for (version, good) in &self.released {
            if *good {
                ensure!(rest.next() == Some(version), "{server}: {version} in {starts:?}");
                before = version;
            } else if rest.next_if(|now| now == version).is_some() {
                ensure!(
                    rest.next() == Some(before),
                    "{server}: no return to {before} in {starts:?}"
                );
            }
        }
        ensure!(rest.next().is_none(), "{server}: {starts:?}");
        Ok(())
    }
}
