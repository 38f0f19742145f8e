//! The shapes of `-o json`, which scripts read.

use std::path::Path;

use cohort_core::ids::Revision;
use cohort_core::waiting::WaitingOn;
use serde::Serialize;
use serde_json::Value;

use crate::difference::difference;
use crate::groups::GroupSummary;
use crate::moving::Difference;
use crate::plan::{Offered, plan};
use crate::report::report_test::report;
use crate::sample::{app, held, moving, rolling, server, settled, version};
use crate::why::{server_waits, waits};

fn hold(name: &str, values: &[Value]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    cohort_base::golden::hold(&path, values);
}

fn json(value: impl Serialize) -> Value {
    serde_json::to_value(value).unwrap()
}

#[test]
fn status_as_json() {
    let mut no_quorum = settled();
    no_quorum.linearizable = false;
    no_quorum.killed = Some("bad night".to_owned());
    let values = [settled(), rolling(), held(), moving(), no_quorum].map(|one| json(report([one])));
    hold("status.jsonl", &values);
}

#[test]
fn waits_as_json() {
    let values = [settled(), rolling(), held(), moving()].map(|one| json(waits(&report([one]))));
    let server = json(server_waits(&rolling(), &server("web-2")));
    hold("why.jsonl", &[&values[..], &[server]].concat());
}

#[test]
fn plans_as_json() {
    let text = "app = \"web\"\nchannel = \"stable\"\n[update]\napprove_after_wave = 1\n";
    let policy = toml::from_str(text).unwrap();
    let base: cohort_core::ids::Digest = "ab".repeat(32).parse().unwrap();
    let whole =
        Offered { version: version("1.1.0"), length: 3 << 20, differences: Vec::new(), base: None };
    let differences = vec![Difference { from: base.clone(), length: 1 << 10 }];
    let delta = Offered { differences, base: Some(base), ..whole.clone() };
    let current = Offered { version: version("1.0.0"), ..whole.clone() };
    let away = WaitingOn::RegistryAway;
    let values = [whole, delta, current]
        .map(|it| json(plan(&settled(), &app(), &policy, Revision(4), &it, Some(&away))));
    hold("plan.jsonl", &values);
}

#[test]
fn groups_and_changes_as_json() {
    let group = json(GroupSummary::of(&report([settled()]).groups[0]));
    let (before, after) =
        (serde_json::json!({"a": 1, "b": 2}), serde_json::json!({"a": 2, "c": 3}));
    hold("groups.jsonl", &[group]);
    hold("changes.jsonl", &[json(difference(&before, &after))]);
}
