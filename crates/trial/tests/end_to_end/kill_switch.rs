//! The kill switch: in the middle of a rollout, through restarts of everything, without the hub.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use cohort_core::state::ActivationStage;
use cohort_trial::release::WebRelease;
use cohort_trial::watch::{app, killed, runs};
use cohort_wire::agent::KILL;
use cohort_wire::http::Call;
use cohort_wire::kill::SignedKill;
use serde_json::Value;

use crate::trial::{
    GROUP, ONE_BY_ONE, PATIENCE, PLATFORM, Trial, Wanted, policy, throughout, until,
};

#[test]
fn stops_everything_until_it_is_off() -> Result<()> {
    let mut trial = Trial::start("kill", &Wanted { servers: 4, mirrors: 1, ..Wanted::default() })?;
    let slow = ONE_BY_ONE.replace("\"300ms\"", "\"1500ms\"");
    trial.first_release(&policy(&slow, ""), &WebRelease::new("1.0.0"))?;

    // In the middle of the second wave.
    trial.publish(&WebRelease::new("1.1.0"), &[PLATFORM])?;
    trial.until(GROUP, PATIENCE, |status| app(status).is_some_and(|app| app.wave == 2))?;
    trial.run(&["kill", "on", "--reason", "coffee first"])?;
    until("every server has latched it", PATIENCE, || all(&trial, true))?;
    // What was begun comes to its end, and takes traffic again; nothing else begins.
    trial.until(GROUP, PATIENCE, |status| {
        killed(status, "coffee first")
            && app(status).is_some_and(|app| {
                // Granted and not begun is held by the switch, and serves meanwhile.
                let at_rest = |activation: Option<&ActivationStage>| {
                    activation.is_none_or(|stage| *stage == ActivationStage::Granted)
                };
                app.servers
                    .values()
                    .all(|server| server.in_service && at_rest(server.activation.as_ref()))
            })
    })?;
    let updated = updated(&trial)?;
    ensure!((1..4).contains(&updated), "{updated} servers run 1.1.0");

    // Through a restart of everything.
    for server in trial.servers() {
        trial.kill_agent(&server);
    }
    trial.stop_hub();
    for server in trial.servers() {
        trial.start_agent(&server)?;
    }
    trial.until(GROUP, PATIENCE, |status| status.linearizable && killed(status, "coffee first"))?;
    trial.start_hub()?;
    ensure!(all(&trial, true), "a server has forgotten it");
    ensure!(through_hub(&trial)?, "the hub has forgotten it");
    trial.nothing_begins()?;
    ensure!(self::updated(&trial)? == updated, "more servers run 1.1.0 than before");

    trial.run(&["kill", "off"])?;
    trial.until(GROUP, PATIENCE, |status| runs(status, "1.1.0"))?;

    without_the_hub(&mut trial)?;
    trial.pass()
}

/// At one agent, while the hub is away: it spreads to the whole group, and back off as well.
fn without_the_hub(trial: &mut Trial) -> Result<()> {
    trial.stop_hub();
    let (first, last) = ("intel-a-01", "intel-a-04");
    let epoch = at_agent(trial, first)?.1;
    switch_at(trial, first, "on")?;
    until("every server has heard of it", PATIENCE, || all(trial, true))?;
    let on = at_agent(trial, last)?.1;
    ensure!(on > epoch, "epoch {on} after {epoch}");
    let old = register(trial, last)?;

    trial.start_hub()?;
    trial.publish(&WebRelease::new("1.2.0"), &[PLATFORM])?;
    trial.until(GROUP, PATIENCE, |status| killed(status, ""))?;
    trial.nothing_begins()?;
    trial.stop_hub();

    switch_at(trial, last, "off")?;
    until("every server has heard that it is off", PATIENCE, || all(trial, false))?;

    // What was said before is kept by somebody and said again: it changes nothing.
    say_again(trial, first, &old)?;
    throughout(Duration::from_secs(2), || {
        ensure!(all(trial, false), "an old register was taken");
        Ok(())
    })?;
    trial.start_hub()?;
    trial.until(GROUP, PATIENCE, |status| runs(status, "1.2.0")).map(drop)
}

fn updated(trial: &Trial) -> Result<usize> {
    let status = trial.until(GROUP, PATIENCE, |status| status.linearizable)?;
    let app = app(&status).context("the app is known")?;
    let new = |running: &str| running == "1.1.0";
    Ok(app
        .servers
        .values()
        .filter(|server| server.running.as_ref().is_some_and(|v| new(v.as_str())))
        .count())
}

/// Whether the switch is on at one agent, and its epoch.
fn at_agent(trial: &Trial, server: &str) -> Result<(bool, u64)> {
    let address = trial.agents()[server].address.to_string();
    let args = ["kill", "status", "--agent", &address, "--name", server, "-o", "json"];
    let output = trial.try_run(&args)?;
    let answer: Value = serde_json::from_slice(&output.stdout)
        .with_context(|| String::from_utf8_lossy(&output.stderr).into_owned())?;
    let on = answer["on"].as_bool().context("a switch has a position")?;
    Ok((on, answer["switches"][0]["epoch"].as_u64().unwrap_or(0)))
}

fn all(trial: &Trial, on: bool) -> bool {
    trial.servers().iter().all(|server| at_agent(trial, server).is_ok_and(|(now, _)| now == on))
}

fn through_hub(trial: &Trial) -> Result<bool> {
    // 3: one is on.
    Ok(trial.try_run(&["kill", "status"])?.status.code() == Some(3))
}

fn switch_at(trial: &Trial, server: &str, position: &str) -> Result<()> {
    let address = trial.agents()[server].address.to_string();
    trial.run(&["kill", position, "--agent", &address, "--name", server]).map(drop)
}

/// The signed register as an agent passes it on.
fn register(trial: &Trial, server: &str) -> Result<SignedKill> {
    let registers: Vec<SignedKill> = trial.call(server, Call::get(KILL))?;
    match registers.as_slice() {
        [one] => Ok(one.clone()),
        other => bail!("{} registers", other.len()),
    }
}

fn say_again(trial: &Trial, server: &str, old: &SignedKill) -> Result<()> {
    let call = Call::post(KILL, old);
    let now: Vec<SignedKill> = trial.call(server, call)?;
    ensure!(!now.contains(old), "an old register was taken");
    Ok(())
}
