//! Agents, and whole servers, that die in the middle of a step.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use crate::prober::{Prober, most_down, version_at};
use anyhow::{Context as _, Result, bail, ensure};
use cohort_base::events;
use cohort_core::report::Step;
use cohort_trial::logs::{Line, Logs};
use cohort_trial::release::WebRelease;
use cohort_trial::watch::{app, runs};

use crate::trial::{GROUP, ONE_BY_ONE, PATIENCE, PLATFORM, Trial, policy, until};

/// The hook that makes a step last, so that the kill hits it midway.
fn hook_of(step: Step) -> Option<&'static str> {
    match step {
        Step::Drain => Some("before-block-traffic"),
        Step::HandOver => Some("hand-over"),
        Step::Stop => Some("application-stop"),
        Step::Switch => Some("after-install"),
        Step::Start => Some("application-start"),
        Step::Check => Some("validate-service"),
        Step::WarmUp => Some("before-allow-traffic"),
        // Bytes and unpacking have no hook. Confirm or undo has its own test.
        Step::Prepare | Step::Fetch | Step::Undo => None,
    }
}

/// A release whose hooks all check whether to take a moment: the one that [`make_last`] names does.
fn slow(trial: &Trial, version: &str) -> WebRelease {
    let mut release = WebRelease::new(version);
    for hook in Step::ALL.into_iter().filter_map(hook_of) {
        let named = named(trial);
        let script = format!("#!/bin/sh\ngrep -qx {hook} {} && sleep 1\nexit 0\n", named.display());
        release = release.hook(hook, &script);
    }
    release
}

/// Selects the step whose hook takes a moment from now on.
fn make_last(trial: &Trial, step: Step) -> Result<()> {
    Ok(std::fs::write(named(trial), hook_of(step).unwrap_or_default())?)
}

fn named(trial: &Trial) -> PathBuf {
    trial.dir().join("slow-hook")
}

/// Kills a server's agent at each step of an activation: the step runs again, as the next attempt,
/// and nothing else does.
#[test]
fn an_agent_is_killed_at_each_step() -> Result<()> {
    let mut trial = Trial::of("killed-at-step", 3)?;
    make_last(&trial, Step::Prepare)?;
    trial.first_release(&policy(ONE_BY_ONE, ""), &slow(&trial, "1.0.0"))?;
    let prober = Prober::start(&trial.services());
    let steps: Vec<Step> = Step::ALL
        .into_iter()
        .filter(|step| hook_of(*step).is_some() || *step == Step::Prepare)
        .collect();
    for (number, step) in steps.iter().enumerate() {
        let version = format!("1.{}.0", number + 1);
        make_last(&trial, *step)?;
        trial.publish(&slow(&trial, &version), &[PLATFORM])?;
        let killed = kill_at(&mut trial, *step)
            .and_then(|killed| {
                trial.until(GROUP, PATIENCE, |status| runs(status, &version))?;
                Ok(killed)
            })
            .with_context(|| format!("killed at {}", step.name()))?;
        println!("{}: {killed} killed", step.name());
    }
    let seen = prober.stop();
    ensure!(most_down(&seen) <= 1, "more than one server was out of service: {seen:?}");
    let all: Vec<String> = (0..=steps.len()).map(|number| format!("1.{number}.0")).collect();
    for server in trial.servers() {
        let said = trial.said(&server)?;
        let starts = said.into_iter().filter(|line| line.event == "start");
        let starts: Vec<String> = starts.map(|line| line.version).collect();
        ensure!(starts == all, "{server} started {starts:?}");
        let mut keys: BTreeMap<String, u32> = BTreeMap::new();
        for line in trial.guarded(&server)?.into_iter().filter(|line| line.event == "started") {
            *keys.entry(line.key).or_default() += 1;
        }
        ensure!(keys.values().all(|count| *count == 1), "{server}: {keys:?}");
    }
    trial.pass()
}

/// Kills the first agent that starts the step, restarts it, and waits until the step starts again.
fn kill_at(trial: &mut Trial, step: Step) -> Result<String> {
    let mut logs = Logs::from_now(trial);
    let begins = |line: &Line, attempt: &str| {
        line.is(events::STEP_BEGIN)
            && line.field("step") == Some(step.name())
            && line.field("attempt") == Some(attempt)
    };
    let begun = Instant::now();
    let killed = 'watching: loop {
        for (server, line) in logs.news() {
            if begins(&line, "1") {
                trial.kill_agent(&server);
                break 'watching server;
            }
        }
        ensure!(begun.elapsed() < PATIENCE, "no server reached {}", step.name());
        std::thread::sleep(Duration::from_millis(1));
    };
    for (server, line) in logs.news() {
        if server == killed && line.is(events::STEP_DONE) {
            ensure!(line.field("step") != Some(step.name()), "the step had already ended: {line}");
        }
    }
    trial.start_agent(&killed)?;
    let begun = Instant::now();
    loop {
        for (server, line) in logs.news() {
            if server == killed && line.is(events::STEP_BEGIN) {
                ensure!(begins(&line, "2"), "after the kill: {line}");
                return Ok(killed);
            }
        }
        if begun.elapsed() > PATIENCE {
            bail!("{killed} did not continue");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// All servers of a group lose power mid-rollout, including services and guards.
#[test]
fn a_whole_group_goes_dark_in_the_middle_of_a_rollout() -> Result<()> {
    let mut trial = Trial::of("goes-dark", 3)?;
    make_last(&trial, Step::Check)?;
    trial.first_release(&policy(ONE_BY_ONE, ""), &slow(&trial, "1.0.0"))?;
    trial.publish(&slow(&trial, "1.1.0"), &[PLATFORM])?;
    trial.until(GROUP, PATIENCE, |status| app(status).is_some_and(|app| app.wave >= 2))?;
    let servers = trial.servers();
    for server in &servers {
        trial.power_off(server);
    }
    for server in &servers {
        let address = trial.agents()[server].service;
        ensure!(version_at(address).is_none(), "the service of {server} is still running");
    }
    for server in &servers {
        trial.start_agent(server)?;
    }
    trial.until(GROUP, PATIENCE, |status| runs(status, "1.1.0"))?;
    for server in &servers {
        until("the service answers", PATIENCE, || {
            version_at(trial.agents()[server].service).as_deref() == Some("1.1.0")
        })?;
        ensure!(trial.ready(server)?.0, "{server} is not ready");
    }

    // And while idle: the service runs again before the server has reached its group.
    for server in &servers {
        trial.power_off(server);
    }
    let first = &servers[0];
    trial.start_agent(first)?;
    until("a server starts its service on its own", PATIENCE, || {
        version_at(trial.agents()[first].service).as_deref() == Some("1.1.0")
    })?;
    for server in &servers[1..] {
        trial.start_agent(server)?;
    }
    trial.until(GROUP, PATIENCE, |status| status.linearizable && runs(status, "1.1.0"))?;
    trial.pass()
}
