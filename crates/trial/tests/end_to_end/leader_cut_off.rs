//! A leader that is alive but unreachable: suspended for a while, or on the wrong side of a
//! partition. The others continue; when it is back it follows, and has done no harm.

use std::collections::BTreeMap;

use crate::prober::{Prober, most_down};
use anyhow::{Context as _, Result, ensure};
use cohort_base::events;
use cohort_trial::Fleet;
use cohort_trial::logs::Logs;
use cohort_trial::release::WebRelease;
use cohort_trial::watch::{app, runs};
use rustix::process::Signal;

use crate::trial::{GROUP, PATIENCE, PLATFORM, Trial, Wanted, one_by_one_slowly, policy, until};
use crate::unreachable::{HERE, THERE, There, in_a_namespace};

#[test]
fn stopped_for_a_while() -> Result<()> {
    let mut trial = Trial::of("leader-stopped", 3)?;
    trial.first_release(&policy(&one_by_one_slowly(), ""), &WebRelease::new("1.0.0"))?;
    let prober = Prober::start(&trial.services());
    for version in ["1.1.0", "1.2.0"] {
        trial.publish(&WebRelease::new(version), &[PLATFORM])?;
        trial.until(GROUP, PATIENCE, |status| app(status).is_some_and(|app| app.wave >= 1))?;
        let leader = trial.who_leads()?;
        trial.signal_agent(&leader, Signal::STOP);
        let next = until_another_leads(&trial, &leader)?;
        trial.signal_agent(&leader, Signal::CONT);
        println!("{version}: {leader} was suspended, {next} continued");
        trial.until(GROUP, PATIENCE, |status| runs(status, version))?;
        trial.until_caught_up(&leader)?;
    }
    let seen = prober.stop();
    ensure!(most_down(&seen) <= 1, "more than one server was out of service: {seen:?}");
    once_each(&trial, &["1.0.0", "1.1.0", "1.2.0"])?;
    trial.pass()
}

/// A suspended process accepts connections but does not answer: ask the others.
fn until_another_leads(trial: &Trial, than: &str) -> Result<String> {
    let mut next = None;
    until("another member is the leader", PATIENCE, || {
        let others = trial.agents().values().filter(|agent| agent.server != than);
        next = others.filter_map(|agent| trial.ask(agent).ok()).find_map(|status| {
            let leader = status.leader.filter(|_| status.linearizable)?;
            (leader.as_str() != than).then(|| leader.to_string())
        });
        next.is_some()
    })?;
    next.context("another member is the leader")
}

const OWN: &str = "leader_cut_off::on_the_wrong_side_of_a_cut_network";
const CUT_OFF: &str = "intel-a-02";

#[test]
fn on_the_wrong_side_of_a_cut_network() -> Result<()> {
    in_a_namespace(OWN, || {
        let there = There::new()?;
        let options = Wanted { servers: 3, ..Wanted::default() }.options("leader-cut-off")?;
        let dir = options.dir.clone();
        let mut fleet = Fleet::lay_out_at(options, HERE)?;
        fleet.place(CUT_OFF, THERE, &there.enter());
        let trial = Trial::around(fleet, dir)?;
        let slow = one_by_one_slowly();
        let slow = slow.replace("unreachable_after = \"30s\"", "unreachable_after = \"5s\"");
        // The one that is cut off counts as out: the others go on only if two may be.
        let slow = slow.replace("max_unavailable = 1", "max_unavailable = 2");
        trial.first_release(&policy(&slow, ""), &WebRelease::new("1.0.0"))?;
        trial.run(&["group", "transfer-leader", GROUP, "--to", CUT_OFF])?;

        trial.publish(&WebRelease::new("1.1.0"), &[PLATFORM])?;
        trial.until(GROUP, PATIENCE, |status| app(status).is_some_and(|app| app.wave >= 1))?;
        let mut logs = Logs::from_now(&trial);
        there.ip("link set there down")?;
        let next = until_another_leads(&trial, CUT_OFF)?;
        // The others get the release; the group waits for the unreachable server, and names it.
        trial.until(GROUP, PATIENCE, |status| {
            let servers = app(status).into_iter().flat_map(|app| &app.servers);
            let mut others = servers.filter(|(id, _)| id.as_str() != CUT_OFF);
            status.linearizable
                && others.all(|(_, here)| {
                    here.running.as_ref().is_some_and(|version| version.as_str() == "1.1.0")
                })
        })?;
        // A deposed leader decides nothing: its side entered no phase on its own.
        let mut states: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for (server, line) in logs.news() {
            if line.is(events::PHASE) {
                states.entry(server).or_default().push(line.to_string());
            }
        }
        let (here, cut) =
            (states.get(&next).context("the new leader continues")?, states.get(CUT_OFF));
        let same = cut.is_none_or(|cut| cut.iter().zip(here).all(|(a, b)| a == b));
        ensure!(same, "{CUT_OFF} diverged: {states:?}");

        there.ip("link set there up")?;
        trial.until(GROUP, PATIENCE, |status| runs(status, "1.1.0"))?;
        trial.until_caught_up(CUT_OFF)?;
        once_each_but(&trial, &["1.0.0", "1.1.0"], CUT_OFF)?;
        trial.pass()
    })
}

/// Every server started every version exactly once.
fn once_each(trial: &Trial, versions: &[&str]) -> Result<()> {
    once_each_but(trial, versions, "")
}

/// The same, except for a server that was cut off: if it had just been granted its change, the
/// group cannot know whether it started, so it is in debt and starts the good release again, under
/// another fence.
fn once_each_but(trial: &Trial, versions: &[&str], cut_off: &str) -> Result<()> {
    for server in trial.servers() {
        let said = trial.said(&server)?;
        let starts = said.into_iter().filter(|line| line.event == "start");
        let mut starts: Vec<String> = starts.map(|line| line.version).collect();
        if server == cut_off && starts.len() == versions.len() + 1 && starts[0] == starts[1] {
            starts.remove(0);
        }
        ensure!(starts == versions, "{server} started {starts:?}");
    }
    Ok(())
}
