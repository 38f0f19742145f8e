//! A fleet whose repository only it may read.

use std::fs::OpenOptions;
use std::io::Write as _;

use anyhow::{Result, ensure};
use cohort_trial::Fleet;
use cohort_trial::release::WebRelease;
use cohort_trial::watch::runs;

use crate::trial::{GROUP, ONE_BY_ONE, PATIENCE, PLATFORM, Trial, Wanted, policy};

#[test]
fn a_fleet_whose_repository_only_it_may_read_rolls_out() -> Result<()> {
    let options = Wanted { servers: 3, ..Wanted::default() }.options("fleet-only")?;
    let dir = options.dir.clone();
    let fleet = Fleet::lay_out(options)?;
    let hub_toml = fleet.context_dir().join("hub.toml");
    writeln!(OpenOptions::new().append(true).open(hub_toml)?, "repository_access = \"fleet\"")?;
    let trial = Trial::around(fleet, dir)?;
    trial.first_release(&policy(ONE_BY_ONE, ""), &WebRelease::new("1.0.0"))?;
    trial.publish(&WebRelease::new("1.1.0"), &[PLATFORM])?;
    trial.until(GROUP, PATIENCE, |status| runs(status, "1.1.0"))?;
    for (server, agent) in trial.agents() {
        let joined = std::fs::read_to_string(agent.dir.join("data/joined.json"))?;
        ensure!(joined.contains("cohort://"), "{server} reads elsewhere: {joined}");
    }
    trial.pass()
}
