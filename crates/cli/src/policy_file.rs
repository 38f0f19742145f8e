//! An app's policy, read from a file: a wrong key is rejected with its line.

use std::path::Path;

use cohort_core::policy::Policy;

use crate::failure::{Exit, Failure};
use crate::layers::read_file;
use crate::toml_keys::{self, KnownKeys};

const KEYS: KnownKeys<'_> = KnownKeys {
    plain: "app channel stage",
    tables: &[("update", UPDATE), ("check", CHECK)],
    later: "window phase protocol autoscale",
};

const UPDATE: KnownKeys<'_> = KnownKeys {
    plain: "max_parallel min_healthy_time healthy_deadline progress_deadline auto_revert \
            approve_after_wave max_unavailable failures_allowed surroundings_allowed \
            confirm_within drain_time warm_up_time stop_despite_hooks bake_time unreachable_after \
            prestage",
    tables: &[],
    later: "window",
};

const CHECK: KnownKeys<'_> = KnownKeys {
    plain: "type port path name expect_status expect_body expect_header interval timeout phase",
    tables: &[],
    later: "metric",
};

pub(crate) fn read(path: &Path) -> Result<Policy, Failure> {
    parse(&read_file(path)?, &path.display().to_string())
}

/// Parses a policy. `file` names it in errors.
pub(crate) fn parse(text: &str, file: &str) -> Result<Policy, Failure> {
    refuse_metric_checks(text, file)?;
    let policy: Policy = toml_keys::read(text, file, KEYS)?;
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
