//! The kill switch: mid-rollout, across restarts of everything, and without the hub.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use cohort_core::state::ActivationStage;
use cohort_identity::{Identity, PeerName, Role, UnixTime};
use cohort_trial::release::WebRelease;
use cohort_trial::watch::{app, killed, runs};
use cohort_wire::agent::{KILL, REVOCATIONS};
use cohort_wire::http::Call;
use cohort_wire::kill::{KillAnswer, SignedKill};
use cohort_wire::revocation::{
    Revocation, RevocationsAnswer, RevocationsExchange, SignedRevocation,
};
use serde_json::Value;

use crate::trial::{
    GROUP, PATIENCE, PLATFORM, Trial, Wanted, one_by_one_slowly, policy, throughout, until,
};

#[test]
fn stops_everything_until_it_is_off() -> Result<()> {
    let mut trial = Trial::start("kill", &Wanted { servers: 4, mirrors: 1, ..Wanted::default() })?;
    trial.first_release(&policy(&one_by_one_slowly(), ""), &WebRelease::new("1.0.0"))?;

    // In the middle of the second wave.
    trial.publish(&WebRelease::new("1.1.0"), &[PLATFORM])?;
    trial.until(GROUP, PATIENCE, |status| app(status).is_some_and(|app| app.wave >= 2))?;
    trial.run(&["kill", "on", "--reason", "coffee first"])?;
    until("every server has latched it", PATIENCE, || all(&trial, true))?;
    // Steps in progress finish, and those servers take traffic again; nothing else starts.
    trial.until(GROUP, PATIENCE, |status| {
        killed(status, "coffee first")
            && app(status).is_some_and(|app| {
                // The switch holds a server that was granted but has not started; it serves
                // meanwhile.
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

    // Restart everything.
    for server in trial.servers() {
        trial.kill_agent(&server);
    }
    trial.stop_hub();
    for server in trial.servers() {
        trial.start_agent(&server)?;
    }
    trial.until(GROUP, PATIENCE, |status| status.linearizable && killed(status, "coffee first"))?;
    trial.start_hub()?;
    ensure!(all(&trial, true), "a server lost the switch");
    ensure!(through_hub(&trial)?, "the hub lost the switch");
    trial.nothing_begins()?;
    ensure!(self::updated(&trial)? == updated, "more servers run 1.1.0 than before");

    trial.run(&["kill", "off"])?;
    trial.until(GROUP, PATIENCE, |status| runs(status, "1.1.0"))?;

    without_the_hub(&mut trial)?;
    trial.pass()
}

/// At one agent, while the hub is down: *on* spreads to the whole group, and so does *off*.
fn without_the_hub(trial: &mut Trial) -> Result<()> {
    trial.stop_hub();
    let (first, last) = ("intel-a-01", "intel-a-04");
    let epoch = at_agent(trial, first)?.1;
    switch_at(trial, first, "on")?;
    until("the switch has reached every server", PATIENCE, || all(trial, true))?;
    let on = at_agent(trial, last)?.1;
    ensure!(on > epoch, "epoch {on} after {epoch}");
    let old = register(trial, last)?;

    trial.start_hub()?;
    trial.publish(&WebRelease::new("1.2.0"), &[PLATFORM])?;
    trial.until(GROUP, PATIENCE, |status| killed(status, ""))?;
    trial.nothing_begins()?;
    trial.stop_hub();

    switch_at(trial, last, "off")?;
    until("the switch is off on every server", PATIENCE, || all(trial, false))?;

    // Replaying an old register changes nothing.
    say_again(trial, first, &old)?;
    throughout(Duration::from_secs(2), || {
        ensure!(all(trial, false), "an old register was accepted");
        Ok(())
    })?;
    trial.start_hub()?;
    trial.until(GROUP, PATIENCE, |status| runs(status, "1.2.0")).map(drop)
}

fn updated(trial: &Trial) -> Result<usize> {
    let status = trial.until(GROUP, PATIENCE, |status| status.linearizable)?;
    let app = app(&status).context("the group has the app")?;
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
    let on = answer["on"].as_bool().context("a switch is on or off")?;
    Ok((on, answer["switches"][0]["epoch"].as_u64().unwrap_or(0)))
}

fn all(trial: &Trial, on: bool) -> bool {
    trial.servers().iter().all(|server| at_agent(trial, server).is_ok_and(|(now, _)| now == on))
}

fn through_hub(trial: &Trial) -> Result<bool> {
    // Exit code 3: a switch is on.
    Ok(trial.try_run(&["kill", "status"])?.status.code() == Some(3))
}

fn switch_at(trial: &Trial, server: &str, position: &str) -> Result<()> {
    let address = trial.agents()[server].address.to_string();
    trial.run(&["kill", position, "--agent", &address, "--name", server]).map(drop)
}

/// The signed register as an agent forwards it.
fn register(trial: &Trial, server: &str) -> Result<SignedKill> {
    let answer: KillAnswer = trial.call(server, Call::get(KILL))?;
    match answer.registers.as_slice() {
        [one] => Ok(one.clone()),
        other => bail!("{} registers", other.len()),
    }
}

fn say_again(trial: &Trial, server: &str, old: &SignedKill) -> Result<()> {
    let call = Call::post(KILL, old);
    let answer: KillAnswer = trial.call(server, call)?;
    ensure!(!answer.changed && !answer.registers.contains(old), "an old register was accepted");
    Ok(())
}

/// Another operator's key is stolen, and the hub is away: the agents refuse it all the same, and
/// the hub once it is back.
#[test]
fn a_stolen_key_counts_no_more_within_seconds_and_without_the_hub() -> Result<()> {
    let mut trial = Trial::of("revoked", 3)?;
    let token = trial.run(&["token", "create", "--role", "operator", "--name", "eve"])?;
    let (file, context) = (trial.dir().join("token"), trial.dir().join("eve"));
    std::fs::write(&file, token)?;
    let thief = |trial: &Trial, args: &[&str]| -> Result<bool> {
        let mut command = trial.command(args);
        Ok(command.env("COHORT_CONTEXT", &context).output()?.status.success())
    };
    let join = ["context", "join", file.to_str().expect("text"), "--name", "eve"];
    ensure!(thief(&trial, &[&join[..], &["--role", "operator"]].concat())?, "eve joins");
    let servers = trial.servers();
    let at = |trial: &Trial, server: &str| -> Result<bool> {
        let address = trial.agents()[server].address.to_string();
        thief(trial, &["kill", "status", "--agent", &address, "--name", server])
    };
    for server in &servers {
        ensure!(at(&trial, server)?, "{server} knows no reason to refuse eve");
    }
    trial.stop_hub();
    let first = trial.agents()[&servers[0]].address.to_string();
    trial.run(&["person", "revoke", "eve", "--agent", &first, "--name", &servers[0]])?;
    for server in &servers {
        until(&format!("{server} refuses eve"), PATIENCE, || {
            at(&trial, server).is_ok_and(|in_| !in_)
        })?;
    }
    trial.start_hub()?;
    until("the hub refuses eve", PATIENCE, || {
        thief(&trial, &["token", "create"]).is_ok_and(|in_| !in_)
    })?;
    // What only the hub was told reaches every agent.
    let (role, name, at) = (Role::Agent, PeerName::new("gone")?, UnixTime::now().as_secs());
    let revocation = Revocation { role, name, at, again: 0, reason: String::new() };
    let operator = Identity::load(&trial.context_dir().join("operator"))?;
    let news = vec![SignedRevocation::sign(&operator, &revocation)?];
    let tell = RevocationsExchange { news, ..RevocationsExchange::default() };
    trial.call_hub::<RevocationsAnswer>(Call::post(REVOCATIONS, &tell))?;
    for server in &servers {
        until(&format!("{server} hears of it"), PATIENCE, || {
            let ask = Call::post(REVOCATIONS, &RevocationsExchange::default());
            let answer = trial.call::<RevocationsAnswer>(server, ask);
            answer.is_ok_and(|answer| {
                answer.has.get(&revocation.key()) == Some(&revocation.edition())
            })
        })?;
    }
    trial.pass()
}
