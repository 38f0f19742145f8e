//! An app is removed from a running group, and added again.

use std::net::TcpStream;

use anyhow::{Result, ensure};
use cohort_core::ids::AppId;
use cohort_core::phase::PhaseName;
use cohort_trial::release::WebRelease;
use cohort_trial::watch::{app, runs};

use crate::trial::{GROUP, PATIENCE, PLATFORM, Trial, one_by_one_slowly, policy, until};

#[test]
fn stops_it_everywhere_and_leaves_nothing() -> Result<()> {
    let mut trial = Trial::of("remove-app", 3)?;
    let policy = policy(&one_by_one_slowly(), "");
    trial.first_release(&policy, &WebRelease::new("1.0.0"))?;
    let web = AppId::new("web")?;

    // Not in the middle of a rollout.
    trial.publish(&WebRelease::new("1.1.0"), &[PLATFORM])?;
    trial.until(GROUP, PATIENCE, |status| app(status).is_some_and(|app| app.wave >= 1))?;
    ensure!(!trial.try_run(&["app", "remove", "web"])?.status.success(), "removed mid-rollout");
    trial.until(GROUP, PATIENCE, |status| runs(status, "1.1.0"))?;

    // A leader that dies meanwhile does not keep the group from it.
    let leader = trial.who_leads()?;
    trial.run(&["app", "remove", "web"])?;
    trial.until(GROUP, PATIENCE, |status| {
        app(status).is_none_or(|app| app.state == PhaseName::Removing)
    })?;
    trial.kill_agent(&leader);
    trial.until_another_leads(&leader)?;
    trial.start_agent(&leader)?;
    trial.until(GROUP, PATIENCE, |status| !status.apps.contains_key(&web))?;
    for (server, address) in trial.services() {
        ensure!(TcpStream::connect(address).is_err(), "{server} still serves");
    }
    trial.run(&["app", "remove", "web"])?;
    let left = |server: &String| {
        let dir = trial.agents()[server].dir.clone();
        dir.join("data/apps/web").exists() || dir.join("apps/web").exists()
    };
    until("nothing of it is left", PATIENCE, || !trial.servers().iter().any(left))?;

    trial.apply(&policy)?;
    trial.until(GROUP, PATIENCE, |status| runs(status, "1.1.0"))?;
    trial.pass()
}
