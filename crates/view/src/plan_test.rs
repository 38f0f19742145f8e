use cohort_core::ids::{GroupId, Revision};
use cohort_core::phase::PhaseName;
use cohort_core::policy::Policy;
use cohort_core::waiting::WaitingOn;

use super::{Offered, plan, text};
use crate::report::report_test::lose;
use crate::sample::{app, fine, held, server, settled, version};

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
fn a_plan_knows_the_rollback_in_progress_and_the_servers_that_are_silent() {
    let mut status = held();
    status.apps.get_mut(&app()).unwrap().state = PhaseName::RollingBack;
    status.apps.get_mut(&app()).unwrap().servers.insert(server("web-1"), fine("1.1.0"));
    lose(&mut status, "web-3", 45_000);
    let of = |version: &str| {
        plan(&status, &app(), &policy(""), Revision(4), &offered(version, 10), None)
    };
    let same = of("1.1.0");
    assert_eq!(same.waves.iter().sum::<u32>(), 3, "web-1 is taken off it");
    let gates: Vec<&str> = same.gates.iter().map(|gate| gate.sentence.as_str()).collect();
    assert_eq!(gates[0], "at the limit of 1 out of service: web-3");
    assert_eq!(gates[1], "rolling back from 1.1.0 to 1.0.0; 1.1.0 is then held");
    assert!(of("1.2.0").gates[1].sentence.ends_with("1.2.0 starts after that"));
    lose(&mut status, "web-2", 31_000);
    let gates = plan(&status, &app(), &policy(""), Revision(4), &offered("1.2.0", 10), None).gates;
    assert!(gates[0].sentence.starts_with("web-2 has been unreachable"), "{gates:?}");
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
