//! Two apps in one group share one capacity ledger.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use cohort_core::phase::PhaseName;
use cohort_trial::Fleet;
use cohort_trial::release::WebRelease;
use cohort_trial::watch::runs;
use cohort_wire::agent::GroupStatus;

use crate::trial::{GROUP, ONE_BY_ONE, PATIENCE, PLATFORM, Trial, policy};

/// An app without a service: its hooks record when its server is out of service and when it is
/// back.
const API: &str = "api";

#[test]
fn never_have_more_out_than_one_of_them_may() -> Result<()> {
    let trial = Trial::of("two-apps", 4)?;
    let ledger = trial.dir().join("ledger");
    let web = |version: &str| {
        let out = note(&ledger, "out web");
        let back = note(&ledger, "back web");
        // The hooks before the stop come from the running release.
        WebRelease::new(version)
            .hook("before-block-traffic", &out)
            .hook("after-allow-traffic", &back)
    };
    let slow = format!("drain_time = \"200ms\"\n{ONE_BY_ONE}");
    trial.first_release(&policy(&slow, ""), &web("1.0.0"))?;
    publish_api(&trial, "1.0.0", &ledger)?;
    let file = trial.dir().join("api.toml");
    let head = format!("app = \"{API}\"\nchannel = \"stable\"\ncheck = []\n");
    fs::write(&file, format!("{head}\n[update]\n{slow}"))?;
    trial.run(&["app", "apply", "-f", &file.display().to_string()])?;
    trial.until(GROUP, PATIENCE, |status| api_runs(status, "1.0.0"))?;
    fs::remove_file(&ledger)?;

    // Both at once: each app alone would have one server out at any time.
    publish_api(&trial, "1.1.0", &ledger)?;
    trial.publish(&web("1.1.0"), &[PLATFORM])?;
    trial.until(GROUP, PATIENCE, |status| runs(status, "1.1.0") && api_runs(status, "1.1.0"))?;

    let text = fs::read_to_string(&ledger)?;
    let mut out: BTreeSet<(&str, &str)> = BTreeSet::new();
    let mut turns = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [what, app, server] = words[..] else { anyhow::bail!("{line}") };
        if what == "out" {
            out.insert((server, app));
            turns.push(app);
        } else {
            out.remove(&(server, app));
        }
        let servers: BTreeSet<&str> = out.iter().map(|(server, _)| *server).collect();
        ensure!(servers.len() <= 1, "{servers:?} were out at once: {text}");
        ensure!(out.len() <= 1, "{out:?}: two concurrent steps on one server: {text}");
    }
    ensure!(turns.len() == 8, "four servers, two apps: {text}");
    let both = turns.windows(2).any(|pair| pair[0] != pair[1]);
    ensure!(
        both,
        "one app waited for the other's whole rollout, or ran concurrently with it: {turns:?}"
    );
    trial.pass()
}

fn note(ledger: &Path, what: &str) -> String {
    format!("#!/bin/sh\necho \"{what} $COHORT_SERVER\" >> {}\n", ledger.display())
}

fn publish_api(fleet: &Fleet, version: &str, ledger: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    let dist = fleet.dir().join(format!("api-{version}"));
    fs::create_dir_all(dist.join("hooks"))?;
    fs::write(dist.join("cohort.toml"), "rollback = \"revert\"\n")?;
    fs::write(dist.join("version"), version)?;
    for (hook, what) in [("before-block-traffic", "out"), ("after-allow-traffic", "back")] {
        let path = dist.join("hooks").join(hook);
        fs::write(&path, note(ledger, &format!("{what} {API}")))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let dist = dist.display().to_string();
    let args = ["publish", &dist, "--app", API, "--version", version, "--platform", PLATFORM];
    fleet.run(&args)?;
    fleet
        .run(&["channel", "set", API, "stable", version, "--create"])
        .context("the channel of the second app")?;
    Ok(())
}

fn api_runs(status: &GroupStatus, version: &str) -> bool {
    let app = status.apps.iter().find(|(id, _)| id.as_str() == API).map(|(_, app)| app);
    app.is_some_and(|app| {
        app.state == PhaseName::Running
            && app.servers.values().all(|server| {
                server.running.as_ref().is_some_and(|running| running.as_str() == version)
            })
    })
}
