use cohort_core::ids::{GroupId, Revision};
use cohort_core::policy::Policy;
use cohort_core::waiting::WaitingOn;

use super::{Offered, plan, text};
use crate::sample::{app, settled, version};

fn policy(update: &str) -> Policy {
    toml::from_str(&format!("app = \"web\"\nchannel = \"stable\"\n{update}")).unwrap()
}

fn offered(name: &str, length: u64) -> Offered {
    Offered { version: version(name), length, differences: Vec::new(), base: None }
}

#[test]
fn a_group_that_runs_the_release_has_nothing_to_do() {
    let plan = plan(&settled(), &app(), &policy(""), Revision(4), &offered("1.0.0", 10), None);
    assert!(!plan.change);
    assert!(plan.waves.is_empty() && plan.gates.is_empty());
    assert_eq!(text(&plan).lines().count(), 1);
}

#[test]
fn waves_bytes_time_and_gates_are_known_beforehand() {
    let policy = policy(
        "[update]\nmax_parallel = [1, \"50%\"]\napprove_after_wave = 1\nbake_time = \"30s\"\n",
    );
    let groups = vec![GroupId::new("intel.zone-b").unwrap()];
    let kept = WaitingOn::StageBefore { version: version("1.1.0"), groups };
    let mut status = settled();
    status.killed = Some("bad night".to_owned());
    let offered = offered("1.1.0", 3 << 20);
    let plan = plan(&status, &app(), &policy, Revision(4), &offered, Some(&kept));
    assert_eq!(plan.waves, [1, 2]);
    assert_eq!(plan.waits_ms, 80_000);
    assert_eq!(
        text(&plan),
        "\
web in intel.zone-a: 1.0.0 -> 1.1.0
  waves: 2 (1 of 1, then 1 of 2)
  out of service at once: at most 1
  transfer: the whole artifact, 3.0 MiB to 3 servers; 3.0 MiB from mirrors, \
up to 6.0 MiB between servers
  transfer time: unknown: no transfer measured yet
  time: 1m 20s of waits in the policy, plus stopping and starting
  gate: kill switch is on: bad night
    -> cohort kill status
  gate: 1.1.0 waits for the verdict of intel.zone-b
    -> cohort why intel.zone-b
  gate: needs approval after wave 1
    -> cohort rollout approve intel.zone-a --app web
"
    );
}
