//! The keys of the repository and the authority are replaced while a fleet runs, and it goes on
//! updating itself: also a server that was off for three changes.

use anyhow::{Result, ensure};
use cohort_trial::release::WebRelease;
use cohort_trial::watch::runs;
use serde_json::Value;

use crate::trial::{GROUP, ONE_BY_ONE, PATIENCE, PLATFORM, Trial, policy, until};

#[test]
fn while_a_fleet_runs() -> Result<()> {
    let mut trial = Trial::of("keys-change", 3)?;
    let policy = policy(ONE_BY_ONE, "");
    trial.first_release(&policy, &WebRelease::new("1.0.0"))?;

    let off = "intel-a-03";
    trial.stop_agent(off);
    for role in ["root", "targets", "timestamp"] {
        trial.run(&["repository", "rotate-key", role])?;
    }
    trial.start_agent(off)?;
    trial.publish(&WebRelease::new("1.1.0"), &[PLATFORM])?;
    trial.until(GROUP, PATIENCE, |status| runs(status, "1.1.0"))?;

    trial.run(&["authority", "rotate"])?;
    let early = trial.try_run(&["authority", "finish"])?;
    ensure!(!early.status.success(), "no server has followed yet");
    // Each looks at its start, and otherwise once an hour.
    let names: Vec<String> = trial.agents().keys().cloned().collect();
    for name in names {
        trial.stop_agent(&name);
        trial.start_agent(&name)?;
        trial.until(GROUP, PATIENCE, |status| runs(status, "1.1.0"))?;
    }
    until("all servers have followed", PATIENCE, || {
        let shown = trial.run(&["authority", "show", "-o", "json"]).unwrap_or_default();
        let shown: Value = serde_json::from_str(&shown).unwrap_or_default();
        shown["behind"].as_array().is_some_and(Vec::is_empty)
    })?;
    trial.apply(&policy)?;
    trial.run(&["authority", "finish"])?;

    trial.publish(&WebRelease::new("1.2.0"), &[PLATFORM])?;
    trial.until(GROUP, PATIENCE, |status| runs(status, "1.2.0"))?;
    trial.pass()
}
