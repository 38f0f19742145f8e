//! What an operator looks at: checks before a policy has them, one server, what happened.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use cohort_trial::release::WebRelease;
use serde_json::Value;

use crate::trial::{GROUP, ONE_BY_ONE, PATIENCE, PLATFORM, Trial, policy};

const POLL: Duration = Duration::from_millis(100);
/// Exit codes of the command line.
const USAGE: i32 = 2;
const UNHEALTHY: i32 = 3;

fn json(text: &str) -> Result<Vec<Value>> {
    serde_json::Deserializer::from_str(text).into_iter().collect::<Result<_, _>>().context("JSON")
}

#[test]
fn by_an_operator() -> Result<()> {
    let mut trial = Trial::of("seen", 2)?;
    let good = policy(ONE_BY_ONE, "");
    trial.first_release(&good, &WebRelease::new("1.0.0"))?;
    let servers = trial.servers();
    checks_before_a_policy_has_them(&trial, &good)?;

    // One server: by its own name, also where its agent is gone.
    let one = json(&trial.run(&["status", &servers[0], "-o", "json"])?)?;
    ensure!(one[0]["server"] == servers[0] && one[0]["healthy"] == true, "{one:?}");
    ensure!(one[0]["apps"]["web"]["running"] == "1.0.0", "{one:?}");
    ensure!(trial.run(&["status", "-o", "name"])?.trim() == GROUP);
    let names = trial.run(&["server", "list", "-o", "name"])?;
    ensure!(names.lines().eq(servers.iter()), "{names}");

    // What happened is told alike by both members, also by one that was started again.
    trial.run(&["rollout", "pause", GROUP])?;
    trial.run(&["rollout", "resume", GROUP])?;
    trial.publish(&WebRelease::new("1.1.0"), &[PLATFORM])?;
    trial.until(GROUP, PATIENCE, |status| cohort_trial::watch::runs(status, "1.1.0"))?;
    let before = happened(&trial, &servers[0])?;
    let done = |events: &BTreeMap<u64, Vec<Value>>, kind: &str| {
        events.values().flatten().filter(|it| it["event"] == kind).count()
    };
    ensure!(done(&before, "steered") == 2 && done(&before, "server-done") >= 4, "{before:?}");
    ensure!(before.values().flatten().any(|it| it["command"] == "pause"), "{before:?}");
    trial.kill_agent(&servers[1]);
    trial.start_agent(&servers[1])?;
    let begun = Instant::now();
    let after = loop {
        match happened(&trial, &servers[1]) {
            Ok(events) if done(&events, "steered") == 2 => break events,
            Ok(_) | Err(_) if begun.elapsed() < PATIENCE => std::thread::sleep(POLL),
            told => bail!("{} tells {told:?}", servers[1]),
        }
    };
    for (index, events) in &after {
        ensure!(before.get(index).is_none_or(|known| known == events), "entry {index}: {events:?}");
    }
    trial.pass()
}

/// What a server tells, by the entry that caused it.
fn happened(trial: &Trial, server: &str) -> Result<BTreeMap<u64, Vec<Value>>> {
    let address = trial.agents()[server].address.to_string();
    let args = ["events", GROUP, "--agent", &address, "--name", server, "-o", "json"];
    let mut events: BTreeMap<u64, Vec<Value>> = BTreeMap::new();
    for line in trial.run(&args)?.lines() {
        let mut line: Value = serde_json::from_str(line).context("an object per line")?;
        let happened = line["happened"].as_object_mut().context("an event")?;
        // Each member has a clock of its own.
        happened.remove("unix_ms");
        let index = happened["index"].as_u64().context("an index")?;
        events.entry(index).or_default().push(line["happened"].take());
    }
    Ok(events)
}

fn checks_before_a_policy_has_them(trial: &Trial, good: &str) -> Result<()> {
    let file = trial.dir().join("seen.toml");
    let (path, bad) = (file.display().to_string(), good.replace("/healthz", "/nothing-here"));
    let tried = |policy: &str, args: &[&str]| -> Result<std::process::Output> {
        std::fs::write(&file, policy)?;
        trial.try_run(&[args, &["-f", &path, "-o", "json"]].concat())
    };
    let seen = tried(good, &["check", "run"])?;
    let rows = json(&String::from_utf8(seen.stdout)?)?;
    ensure!(
        seen.status.success() && rows[0].as_array().is_some_and(|it| it.len() == 2),
        "{rows:?}"
    );
    let seen = tried(&bad, &["check", "run", "--server", &trial.servers()[0]])?;
    let rows = json(&String::from_utf8(seen.stdout)?)?;
    ensure!(seen.status.code() == Some(UNHEALTHY) && rows[0][0]["failure"].is_string(), "{rows:?}");

    let revision = || -> Result<Value> {
        Ok(json(&trial.run(&["app", "show", "web", "-o", "json"])?)?[0][0]["revision"].clone())
    };
    let before = revision()?;
    let refused = tried(&bad, &["app", "apply"])?;
    let failure = json(&String::from_utf8(refused.stderr)?)?;
    ensure!(refused.status.code() == Some(USAGE), "{failure:?}");
    ensure!(failure[0]["kind"] == "no_server_passes" && revision()? == before, "{failure:?}");
    ensure!(tried(&bad, &["app", "apply", "--force"])?.status.success());
    ensure!(revision()? != before);
    ensure!(tried(good, &["app", "apply"])?.status.success());
    Ok(())
}
