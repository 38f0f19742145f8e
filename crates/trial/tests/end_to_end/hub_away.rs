//! The hub stops mid-rollout: the rollout continues, nothing new starts, and the hub catches up
//! when it is back.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cohort_core::phase::PhaseName;
use cohort_core::waiting::WaitingOn;
use cohort_trial::release::WebRelease;
use cohort_trial::watch::{app, runs, waits};
use cohort_wire::http::Call;
use cohort_wire::hub::FLEET;
use serde_json::Value;

use crate::trial::{
    GROUP, ONE_BY_ONE, PATIENCE, PLATFORM, Trial, Wanted, policy, throughout, until,
};

const SECOND: &str = "intel.zone-b";
const STAGES: &str = "[[stage]]\nzone = \"zone-a\"\n\n[[stage]]\nzone = \"zone-b\"\n";

#[test]
fn for_the_whole_rollout() -> Result<()> {
    let wanted = Wanted { servers: 3, servers_b: 1, mirrors: 2, ..Wanted::default() };
    let mut trial = Trial::start("hub-away", &wanted)?;
    trial.first_release(&policy(ONE_BY_ONE, STAGES), &WebRelease::new("1.0.0"))?;

    trial.publish(&WebRelease::new("1.1.0"), &[PLATFORM])?;
    trial.until(GROUP, PATIENCE, |status| {
        // From `leader-holds` on, the registry has the record of the rollout.
        app(status).is_some_and(|app| {
            app.target.as_ref().is_some_and(|target| target.as_str() == "1.1.0")
                && app.state != PhaseName::MARKED_OLD
        })
    })?;
    trial.stop_hub();
    let status = trial.status(GROUP)?;
    ensure!(!runs(&status, "1.1.0"), "the rollout was over before the hub was stopped");
    trial.until(GROUP, PATIENCE, |status| {
        runs(status, "1.1.0") && status.registry_reachable == Some(false)
    })?;

    // The group of the next stage waits for a verdict that it cannot read now, and a newer release
    // is on the mirrors: neither starts.
    trial.publish(&WebRelease::new("1.2.0"), &[PLATFORM])?;
    for (group, version) in [(GROUP, "1.1.0"), (SECOND, "1.0.0")] {
        trial.until(group, PATIENCE, |status| {
            runs(status, version) && waits(status, |on| *on == WaitingOn::RegistryAway)
        })?;
        why_says(&trial, group, "registry-away")?;
    }
    // Every leader polls the mirrors twice a second: after a few polls, still nothing has started.
    for group in [GROUP, SECOND] {
        throughout(Duration::from_secs(2), || {
            let status = trial.status(group)?;
            let state = app(&status).context("the group has the app")?.state;
            ensure!(state == PhaseName::Running, "{group}: {state}");
            Ok(())
        })?;
    }

    // Agents that restart in the meantime get their orders and serve.
    let server = "intel-a-02";
    trial.stop_agent(server);
    trial.start_agent(server)?;
    until("a restarted server is ready", PATIENCE, || {
        trial.ready(server).is_ok_and(|(ready, _)| ready)
    })?;

    trial.start_hub()?;
    for group in [GROUP, SECOND] {
        trial.until(group, PATIENCE, |status| runs(status, "1.2.0"))?;
    }
    // Everything decided while the hub was away has arrived too.
    until("the hub has every record and verdict", PATIENCE, || recorded(&trial))?;
    trial.pass()
}

/// Checks `cohort why` at an agent, because the hub is down.
fn why_says(trial: &Trial, group: &str, waiting_on: &str) -> Result<()> {
    let mut agents = trial.agents().values();
    let agent = agents.find(|agent| agent.group == group).context("a group has agents")?;
    let address = agent.address.to_string();
    let output = trial.try_run(&[
        "why",
        group,
        "--agent",
        &address,
        "--name",
        &agent.server,
        "-o",
        "json",
    ])?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.contains(waiting_on), "cohort why {group}: {output:?}");
    Ok(())
}

/// Whether the hub's registry has both groups' records and verdicts.
fn recorded(trial: &Trial) -> bool {
    let Ok(fleet) = trial.call_hub::<Value>(Call::get(FLEET)) else { return false };
    [GROUP, SECOND].iter().all(|group| {
        let runs = fleet["groups"][group]["apps"][0]["running"] == "1.2.0";
        let verdict = |version: &str| {
            let good = |one: &Value| {
                one["group"] == *group
                    && one["version"] == version
                    && one["record"].get("bad") == Some(&Value::Null)
            };
            fleet["verdicts"].as_array().is_some_and(|all| all.iter().any(good))
        };
        // The second group went from 1.0.0 to 1.2.0.
        runs && verdict("1.2.0") && (*group == SECOND || verdict("1.1.0"))
    })
}
