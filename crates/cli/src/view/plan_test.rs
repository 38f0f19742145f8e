use cohort_core::ids::{GroupId, Revision};
use cohort_core::policy::Policy;
use cohort_core::waiting::WaitingOn;

use super::{Offered, plan, text};
use crate::view::sample::{app, settled, version};

fn policy(text: &str) -> Policy {
    crate::policy_file::parse(text, "web.toml").unwrap()
}

fn offered(name: &str, length: u64) -> Offered {
    Offered { version: version(name), length, differences: Vec::new(), base: None }
}

#[test]
fn nothing_to_do_is_said_in_one_line() {
    let offered = offered("1.0.0", 10);
    let policy = policy("app = \"web\"\nchannel = \"stable\"\n");
    let plan = plan(&settled(), &app(), &policy, Revision(4), &offered, None);
    assert!(!plan.change);
    assert_eq!(text(&plan), "web in intel.zone-a: runs 1.0.0, nothing to do\n");
}

#[test]
fn waves_bytes_time_and_gates_are_told_beforehand() {
    let offered = offered("1.1.0", 3 << 20);
    let policy = policy(
        "app = \"web\"\nchannel = \"stable\"\n[update]\nmax_parallel = [1, \"50%\"]\n\
         approve_after_wave = 1\nbake_time = \"30s\"\n",
    );
    let groups = vec![GroupId::new("intel.zone-b").unwrap()];
    let kept = WaitingOn::StageBefore { version: version("1.1.0"), groups };
    let mut status = settled();
    status.killed = Some("bad night".to_owned());
    let plan = plan(&status, &app(), &policy, Revision(4), &offered, Some(&kept));
    assert_eq!(plan.waves, [1, 2]);
    assert_eq!(
        text(&plan),
        "\
web in intel.zone-a: 1.0.0 -> 1.1.0
  waves: 2 (1 of 1, then 1 of 2)
  out of service at once, at the most: 1
  transfer: the whole artifact, 3.0 MiB to 3 servers; 3.0 MiB from mirrors, up to 6.0 MiB between servers
  transfer time: not known yet: no transfer was measured
  time: 1m 20s of waiting by the policy, and what stopping and starting takes
  gate: the kill switch is on: bad night
    -> cohort kill off
  gate: 1.1.0 waits for the verdict of intel.zone-b
    -> cohort why intel.zone-b
  gate: asks for approval after wave 1
    -> cohort rollout approve intel.zone-a --app web
"
    );
}
