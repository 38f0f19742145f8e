//! An app's policy, read from a file: a wrong key is rejected with its line.

use std::path::Path;

use cohort_core::policy::{Check, Policy};

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
    plain: "type port socket path method headers body name service send expect expect_status \
            expect_body expect_header expect_json interval timeout phase",
    tables: &[("tls", TLS)],
    later: "metric",
};

const TLS: KnownKeys<'_> = KnownKeys { plain: "server_name ca insecure", tables: &[], later: "" };

pub(crate) fn read(path: &Path) -> Result<Policy, Failure> {
    parse(&read_file(path)?, &path.display().to_string())
}

/// Parses a policy. `file` names it in errors.
pub(crate) fn parse(text: &str, file: &str) -> Result<Policy, Failure> {
    refuse_metric_checks(text, file)?;
    let text = with_paths(text, file)?;
    let mut policy: Policy = toml_keys::read(&text, file, KEYS)?;
    if !names_checks(&text) {
        policy.checks.push(listens());
    }
    policy
        .validate()
        .map_err(|error| Failure::new("policy", format!("{file}: {error}")).exit(Exit::Usage))?;
    Ok(policy)
}

/// The text with the `url` of each check as the `path` and `port` that it means. Checks go to the
/// server itself, and people know them as URLs.
fn with_paths(text: &str, file: &str) -> Result<String, Failure> {
    let line = |line: &str| match url_of(line) {
        None => Ok(line.to_owned()),
        Some(url) => path_of(url).ok_or_else(|| {
            let error = format!("{file}: a check goes to the server itself, not to `{url}`");
            Failure::new("policy", error)
                .hint("path = \"/healthz\", and `port` if it is not the service's own")
                .exit(Exit::Usage)
        }),
    };
    let lines = text.lines().map(line).collect::<Result<Vec<_>, _>>()?;
    Ok(lines.join("\n"))
}

/// The value of a line `url = "…"`.
fn url_of(line: &str) -> Option<&str> {
    let value = line.trim().strip_prefix("url")?.trim_start().strip_prefix('=')?.trim_start();
    value.strip_prefix('"')?.split_once('"').map(|(url, _)| url)
}

/// The same as a path, its port unless that is the app's own, and TLS; `None` if it leads
/// elsewhere.
fn path_of(url: &str) -> Option<String> {
    let (tls, rest) = match url.strip_prefix("https://") {
        Some(rest) => ("\ntls = {}", rest),
        None => ("", url.strip_prefix("http://")?),
    };
    let own = ["127.0.0.1", "localhost", "[::1]"];
    let rest = own.iter().find_map(|host| rest.strip_prefix(host))?.strip_prefix(':')?;
    let (port, path) = rest.find('/').map_or((rest, "/"), |at| rest.split_at(at));
    let path = toml::Value::from(path);
    let named = port.strip_prefix("{port.").and_then(|port| port.strip_suffix('}'));
    let port = match (port, named) {
        ("{port}", _) => String::new(),
        (_, Some(name)) => format!("\nport = {}", toml::Value::from(name)),
        (number, None) => format!("\nport = {}", number.parse::<u16>().ok()?),
    };
    Some(format!("path = {path}{port}{tls}"))
}

/// Whether a policy says which checks it has, be it none.
fn names_checks(text: &str) -> bool {
    toml::from_str::<toml::Table>(text).is_ok_and(|table| table.contains_key("check"))
}

/// The check of a policy that names none: the app's own port accepts connections.
fn listens() -> Check {
    toml::from_str("type = \"tcp\"").expect("a check of its own port")
}

/// Whether a policy has no check but the one of policies that name none.
pub(crate) fn only_listens(policy: &Policy) -> bool {
    policy.checks == [listens()]
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
            .hint("use `tcp`, `http`, `grpc` or `exec`")
            .exit(Exit::Usage));
    }
    Ok(())
}

#[cfg(test)]
#[path = "policy_file_test.rs"]
mod policy_file_test;
