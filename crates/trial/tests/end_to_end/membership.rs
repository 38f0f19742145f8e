//! Members, voters and leaders of a group of real agents.

use std::collections::BTreeSet;

use crate::prober::version_at;
use anyhow::{Context as _, Result, ensure};
use cohort_base::events;
use cohort_core::waiting::WaitingOn;
use cohort_trial::logs::{Line, Logs};
use cohort_trial::release::WebRelease;
use cohort_trial::watch::{app, runs};
use cohort_wire::agent::GroupStatus;

use crate::trial::{GROUP, ONE_BY_ONE, PATIENCE, PLATFORM, Trial, Wanted, policy, until};

fn voters(status: &GroupStatus) -> BTreeSet<String> {
    status.voters.iter().map(|voter| voter.server.to_string()).collect()
}

#[test]
fn voters_are_replaced_and_a_lost_disk_comes_back_as_another_member() -> Result<()> {
    let mut trial = Trial::of("members", 6)?;
    trial.first_release(&policy(ONE_BY_ONE, ""), &WebRelease::new("1.0.0"))?;
    let status = trial.until(GROUP, PATIENCE, |status| voters(status).len() == 5)?;
    let all: BTreeSet<String> = trial.servers().into_iter().collect();
    let sixth = all.difference(&voters(&status)).next().context("six less five")?.clone();
    let leader = trial.who_leads()?;

    // A voter leaves permanently: the sixth server takes its place.
    let leaves = voters(&status).into_iter().find(|one| *one != leader).context("others")?;
    trial.stop_agent(&leaves);
    // It counts as alive for a few more seconds, and the group does not remove it until then.
    until("the server is removed", PATIENCE, || {
        let output = trial.try_run(&["group", "remove-server", GROUP, &leaves]);
        output.is_ok_and(|output| output.status.success())
    })?;
    trial.until(GROUP, PATIENCE, |status| {
        let now = voters(status);
        now.len() == 5 && now.contains(&sixth) && !now.contains(&leaves)
    })?;

    // A voter loses the disk with its log: it comes back under another number.
    let loses = voters(&trial.status(GROUP)?)
        .into_iter()
        .find(|one| *one != leader && *one != sixth)
        .context("others")?;
    let number = |status: &GroupStatus| {
        status.servers.iter().find(|(id, _)| id.as_str() == loses).and_then(|(_, s)| s.member)
    };
    let before = number(&trial.status(GROUP)?).context("a voter has a number")?;
    trial.kill_agent(&loses);
    std::fs::remove_dir_all(trial.agents()[&loses].dir.join("data/member"))?;
    trial.start_agent(&loses)?;
    trial.until(GROUP, PATIENCE, |status| {
        voters(status).contains(&loses)
            && voters(status).len() == 5
            && number(status).is_some_and(|now| now > before)
    })?;
    trial.until_caught_up(&loses)?;
    let left: Vec<String> = trial.servers().into_iter().filter(|one| *one != leaves).collect();

    // The group still works with its new members.
    trial.publish(&WebRelease::new("1.1.0"), &[PLATFORM])?;
    trial.until(GROUP, PATIENCE, |status| runs(status, "1.1.0"))?;
    for server in left {
        let version = version_at(trial.agents()[&server].service);
        ensure!(version.as_deref() == Some("1.1.0"), "{server}: {version:?}");
    }
    trial.pass()
}

#[test]
fn a_server_that_joins_in_the_middle_gets_its_release_before_it_is_ready() -> Result<()> {
    let mut trial = Trial::start("joins", &Wanted { servers: 3, mirrors: 1, ..Wanted::default() })?;
    trial.first_release(&policy(ONE_BY_ONE, ""), &WebRelease::new("1.0.0"))?;
    let asks = format!("approve_after_wave = 1\n{ONE_BY_ONE}");
    trial.apply(&policy(&asks, ""))?;
    trial.publish(&WebRelease::new("1.1.0"), &[PLATFORM])?;
    trial.until(GROUP, PATIENCE, |status| {
        cohort_trial::watch::waits(status, |on| *on == WaitingOn::Approval { wave: 1 })
    })?;

    let joins = "intel-a-04";
    trial.add_agent(joins, GROUP)?;
    let service = trial.agents()[joins].service;
    let mut looked = 0;
    until("the new server is ready", PATIENCE, || match trial.ready(joins) {
        Ok((true, _)) => true,
        Ok((false, _)) => {
            looked += 1;
            false
        }
        Err(_) => false,
    })?;
    ensure!(looked > 0, "it was ready immediately");
    let first = version_at(service);
    ensure!(first.is_some(), "it was ready but served nothing");
    trial.until(GROUP, PATIENCE, |status| {
        let mut servers = app(status).into_iter().flat_map(|app| &app.servers);
        let here = servers.find(|(id, _)| id.as_str() == joins);
        here.is_some_and(|(_, here)| here.in_service && here.debt.is_none())
    })?;
    ensure!(first.as_deref() == Some("1.0.0"), "last_good is 1.0.0, and it serves {first:?}");

    trial.run(&["rollout", "approve", GROUP])?;
    trial.until(GROUP, PATIENCE, |status| runs(status, "1.1.0") && status.servers.len() == 4)?;
    ensure!(version_at(service).as_deref() == Some("1.1.0"), "the rollout skipped it");
    trial.pass()
}

#[test]
fn leadership_is_handed_over_on_request_and_before_a_stop() -> Result<()> {
    let mut trial = Trial::of("hand-over", 3)?;
    trial.first_release(&policy(ONE_BY_ONE, ""), &WebRelease::new("1.0.0"))?;
    let before = trial.who_leads()?;
    let to = trial.servers().into_iter().find(|one| *one != before).context("others")?;
    trial.run(&["group", "transfer-leader", GROUP, "--to", &to])?;
    ensure!(trial.who_leads()? == to, "{to} is not the leader");
    trial.until_caught_up(&before)?;

    // A clean stop: another member is the leader before the process exits.
    let mut logs = Logs::from_now(&trial);
    ensure!(trial.stop_agent(&to), "the agent had to be killed");
    let leads = |(_, line): &(String, Line)| {
        line.is(events::RAFT_ROLE) && line.field("role") == Some("Leader")
    };
    let next = logs.news().into_iter().find(leads);
    let (next, _) = next.context("the group had no leader after the old one stopped")?;
    ensure!(next != to, "{to} transferred leadership to itself");
    ensure!(trial.until_another_leads(&to)? == next, "{next} is not the leader");
    trial.start_agent(&to)?;
    trial.roll_out(&WebRelease::new("1.1.0"))?;
    trial.pass()
}
