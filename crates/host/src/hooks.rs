//! Hooks: executables in a release that run at its steps.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use cohort_base::chain;
use serde::{Deserialize, Serialize};

use crate::cgroup::Limits;
use crate::confine::Confined;
use crate::isolation::Isolation;
use crate::output::Tail;
use crate::process::Exit;
use crate::program::{End, Program, ProgramError, Programs, RunAs, base_environment, run};

/// A release's directory of hooks.
pub(crate) const HOOKS_FOLDER: &str = "hooks";

/// The exit status of a hook that asks for a retry.
const EXIT_LATER: i32 = 21;

/// How much output is kept in a file per hook, in bytes. 64 KiB: many screenfuls, and negligible on
/// disk.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// When a release may run its own program during an activation. The variants are named like the
/// files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Hook {
    /// Before traffic is taken away; a hook of the running release.
    BeforeBlockTraffic,
    /// After traffic is gone; a hook of the running release.
    AfterBlockTraffic,
    /// To move the service's own leadership elsewhere; a hook of the running release.
    HandOver,
    /// Before the service is stopped; a hook of the running release.
    ApplicationStop,
    /// Before `current` points to the release.
    BeforeInstall,
    /// After `current` points to the release.
    AfterInstall,
    /// After the service was started.
    ApplicationStart,
    /// After the checks have passed.
    ValidateService,
    /// Before traffic returns.
    BeforeAllowTraffic,
    /// After traffic has returned.
    AfterAllowTraffic,
}

impl Hook {
    /// In the order of an activation.
    pub const ALL: [Hook; 10] = [
        Hook::BeforeBlockTraffic,
        Hook::AfterBlockTraffic,
        Hook::HandOver,
        Hook::ApplicationStop,
        Hook::BeforeInstall,
        Hook::AfterInstall,
        Hook::ApplicationStart,
        Hook::ValidateService,
        Hook::BeforeAllowTraffic,
        Hook::AfterAllowTraffic,
    ];

    /// The name of the hook's file.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Hook::BeforeBlockTraffic => "before-block-traffic",
            Hook::AfterBlockTraffic => "after-block-traffic",
            Hook::HandOver => "hand-over",
            Hook::ApplicationStop => "application-stop",
            Hook::BeforeInstall => "before-install",
            Hook::AfterInstall => "after-install",
            Hook::ApplicationStart => "application-start",
            Hook::ValidateService => "validate-service",
            Hook::BeforeAllowTraffic => "before-allow-traffic",
            Hook::AfterAllowTraffic => "after-allow-traffic",
        }
    }
}

#[derive(Debug)]
pub(crate) struct HookRun<'a> {
    pub(crate) hook: Hook,
    pub(crate) folder: &'a Path,
    pub(crate) limit: Duration,
    pub(crate) variables: &'a BTreeMap<String, String>,
    pub(crate) programs: &'a Programs,
    pub(crate) run_as: Option<RunAs>,
    pub(crate) home: Option<&'a Path>,
    /// As the release's service.
    pub(crate) isolation: Isolation,
    pub(crate) limits: Limits,
    /// The directory for `<hook>.log`.
    pub(crate) kept_in: &'a Path,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HookEnd {
    Absent,
    Passed,
    Later {
        output: String,
    },
    /// The release is at fault.
    Failed {
        why: HookFailure,
        output: String,
    },
}

/// How a hook failed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HookFailure {
    NotExecutable,
    /// A bad interpreter, or not a program at all; the cause.
    NotStarted(String),
    Exited(Exit),
    TimedOut {
        limit_ms: u128,
    },
}

impl fmt::Display for HookFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HookFailure::NotExecutable => write!(f, "is not an executable file"),
            HookFailure::NotStarted(cause) => write!(f, "did not start: {cause}"),
            HookFailure::Exited(exit) => write!(f, "failed: {exit}"),
            HookFailure::TimedOut { limit_ms } => {
                write!(f, "did not end within {limit_ms} ms and was killed")
            }
        }
    }
}

impl HookRun<'_> {
    /// Runs the hook. Dropping the future kills its whole process group.
    ///
    /// # Errors
    /// If the machine could not run it. Failures caused by the release are a [`HookEnd`].
    pub(crate) async fn run(&self) -> Result<HookEnd, ProgramError> {
        let name = self.hook.name();
        let path = self.folder.join(HOOKS_FOLDER).join(name);
        match fs::metadata(&path) {
            Err(_) => return Ok(HookEnd::Absent),
            Ok(metadata) if !metadata.is_file() || metadata.permissions().mode() & 0o111 == 0 => {
                let why = HookFailure::NotExecutable;
                return Ok(HookEnd::Failed { why, output: String::new() });
            }
            Ok(_) => {}
        }
        let note = self.kept_in.join("running");
        crate::orphan::end(&note).await;
        let mut env = base_environment(self.home);
        env.extend(self.variables.iter().map(|(name, value)| (name.clone(), value.clone())));
        let confined = Confined {
            env,
            run_as: self.run_as,
            isolation: self.isolation.clone(),
            ..Confined::new(path, self.folder.to_owned())
        };
        let (programs, limits, limit) = (self.programs, self.limits, self.limit);
        let program = Program { programs, confined, limits, limit, note: Some(note) };
        let mut tail = Tail::new(KEPT_BYTES_MAX);
        let end = run(&program, &mut tail).await;
        keep(&self.kept_in.join(format!("{name}.log")), &mut tail);
        let output = tail.text();
        let why = match end {
            Ok(End::Exited(Exit::Status(0))) => return Ok(HookEnd::Passed),
            Ok(End::Exited(Exit::Status(EXIT_LATER))) => return Ok(HookEnd::Later { output }),
            Ok(End::Exited(exit)) => HookFailure::Exited(exit),
            Ok(End::TimedOut) => HookFailure::TimedOut { limit_ms: self.limit.as_millis() },
            Err(error @ ProgramError::Spawn { .. }) => HookFailure::NotStarted(chain(&error)),
            Err(error @ ProgramError::Watch { .. }) => return Err(error),
        };
        Ok(HookEnd::Failed { why, output })
    }
}

/// Stores the last output for people. Failing to store it does not fail the hook.
fn keep(path: &Path, tail: &mut Tail) {
    if let Err(error) = fs::write(path, tail.bytes()) {
        tracing::warn!(path = %path.display(), %error, "cannot store a hook's output");
    }
}

#[cfg(test)]
#[path = "hooks_test.rs"]
mod hooks_test;
