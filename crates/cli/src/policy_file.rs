//! An app's policy, read from a file: a wrong key is refused with its line.

use std::path::Path;

use cohort_core::policy::Policy;

use crate::failure::{Exit, Failure};
use crate::layers::read_file;
use crate::toml_keys::{self, Shape};

const KEYS: &[(&str, Shape)] = &[
    ("app", Shape::Value),
    ("channel", Shape::Value),
    ("update", Shape::Table(UPDATE)),
    ("check", Shape::Tables(CHECK)),
    ("stage", Shape::Value),
    ("window", Shape::Later),
    ("phase", Shape::Later),
    ("protocol", Shape::Later),
    ("autoscale", Shape::Later),
];

const UPDATE: &[(&str, Shape)] = &[
    ("max_parallel", Shape::Value),
    ("min_healthy_time", Shape::Value),
    ("healthy_deadline", Shape::Value),
    ("progress_deadline", Shape::Value),
    ("auto_revert", Shape::Value),
    ("approve_after_wave", Shape::Value),
    ("max_unavailable", Shape::Value),
    ("failures_allowed", Shape::Value),
    ("surroundings_allowed", Shape::Value),
    ("confirm_within", Shape::Value),
    ("drain_time", Shape::Value),
    ("warm_up_time", Shape::Value),
    ("bake_time", Shape::Value),
    ("unreachable_after", Shape::Value),
    ("prestage", Shape::Value),
    ("window", Shape::Later),
];

const CHECK: &[(&str, Shape)] = &[
    ("type", Shape::Value),
    ("address", Shape::Value),
    ("url", Shape::Value),
    ("expect_status", Shape::Value),
    ("expect_body", Shape::Value),
    ("expect_header", Shape::Value),
    ("command", Shape::Value),
    ("args", Shape::Value),
    ("interval", Shape::Value),
    ("timeout", Shape::Value),
    ("phase", Shape::Value),
    ("metric", Shape::Later),
];

/// Reads a policy file.
pub(crate) fn read(path: &Path) -> Result<Policy, Failure> {
    parse(&read_file(path)?, &path.display().to_string())
}

/// Reads a policy. `file` names it in errors.
pub(crate) fn parse(text: &str, file: &str) -> Result<Policy, Failure> {
    toml_keys::check(text, file, KEYS)?;
    refuse_metric_checks(text, file)?;
    let policy: Policy =
        toml::from_str(text).map_err(|error| toml_keys::malformed(file, &error))?;
    policy
        .validate()
        .map_err(|error| Failure::new("policy", format!("{file}: {error}")).exit(Exit::Usage))?;
    Ok(policy)
}

/// Checks on metrics are reserved for a later version.
fn refuse_metric_checks(text: &str, file: &str) -> Result<(), Failure> {
    let Ok(table) = toml::from_str::<toml::Table>(text) else { return Ok(()) };
    let checks = table.get("check").and_then(toml::Value::as_array);
    let is_metric =
        |check: &toml::Value| check.get("type").and_then(toml::Value::as_str) == Some("metric");
    if checks.is_some_and(|checks| checks.iter().any(is_metric)) {
        let error = format!("{file}: checks of type `metric` are not supported yet");
        return Err(Failure::new("not_yet", error)
            .hint("use `tcp`, `http` or `exec`")
            .exit(Exit::Usage));
    }
    Ok(())
}

#[cfg(test)]
#[path = "policy_file_test.rs"]
mod policy_file_test;
