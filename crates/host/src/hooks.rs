//! Hooks: executables in a release that run at its steps.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::output::Tail;
use crate::program::{End, Program, ProgramError, RunAs, base_environment, run};

/// The folder in a release that holds them.
const HOOKS_FOLDER: &str = "hooks";

/// Exit status that says "later, try again".
const EXIT_LATER: i32 = 21;

/// Output kept in a file per hook. 64 KiB: a screenful many times over, nothing on a disk.
const KEPT_BYTES_MAX: usize = 64 * 1024;

/// Where an activation gives a release the word. The names are those of the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// Traffic is about to go away (running release).
    BeforeBlockTraffic,
    /// Traffic is gone (running release).
    AfterBlockTraffic,
    /// The service's own leadership is to go elsewhere (running release).
    HandOver,
    /// The service is about to be stopped (running release).
    ApplicationStop,
    /// `current` is about to point to the release.
    BeforeInstall,
    /// `current` points to the release.
    AfterInstall,
    /// The service was started.
    ApplicationStart,
    /// The checks have passed.
    ValidateService,
    /// Traffic is about to come back.
    BeforeAllowTraffic,
    /// Traffic is back.
    AfterAllowTraffic,
}

impl Hook {
    /// Every hook, in the order of an activation.
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

    /// The file's name.
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

    /// The hook with this name.
    #[must_use]
    pub fn by_name(name: &str) -> Option<Hook> {
        Hook::ALL.into_iter().find(|hook| hook.name() == name)
    }
}

/// One run of a hook.
#[derive(Debug)]
pub(crate) struct HookRun<'a> {
    pub(crate) hook: Hook,
    /// The release's folder.
    pub(crate) folder: &'a Path,
    pub(crate) limit: Duration,
    /// The `COHORT_*` variables.
    pub(crate) variables: &'a BTreeMap<String, String>,
    pub(crate) run_as: Option<RunAs>,
    /// Where output is kept: `<hook>.log`.
    pub(crate) kept_in: &'a Path,
}

/// How it went.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum HookEnd {
    /// The release has none of this name.
    Absent,
    /// Go on.
    Passed,
    /// It asks to be tried again later.
    Later { output: String },
    /// It failed; the release's fault.
    Failed { reason: String, output: String },
}

impl HookRun<'_> {
    /// Runs the hook. Dropping the future kills its whole process group.
    ///
    /// # Errors
    /// When the machine could not run it; what the release is to blame for is a [`HookEnd`].
    pub(crate) async fn run(&self) -> Result<HookEnd, ProgramError> {
        let name = self.hook.name();
        let path = self.folder.join(HOOKS_FOLDER).join(name);
        match fs::metadata(&path) {
            Err(_) => return Ok(HookEnd::Absent),
            Ok(about) if !about.is_file() || about.permissions().mode() & 0o111 == 0 => {
                let reason = format!("hook {name} is not an executable file");
                return Ok(HookEnd::Failed { reason, output: String::new() });
            }
            Ok(_) => {}
        }
        let note = self.kept_in.join("running");
        crate::orphan::end(&note).await;
        let mut env = base_environment();
        env.extend(self.variables.iter().map(|(name, value)| (name.clone(), value.clone())));
        let program = Program {
            path: &path,
            args: &[],
            env: &env,
            folder: self.folder,
            limit: self.limit,
            run_as: self.run_as,
            note: Some(note),
        };
        let mut tail = Tail::new(KEPT_BYTES_MAX);
        let end = run(&program, &mut tail).await;
        keep(&self.kept_in.join(format!("{name}.log")), &mut tail);
        let output = tail.text();
        let reason = match end {
            Ok(End::Exit(0)) => return Ok(HookEnd::Passed),
            Ok(End::Exit(EXIT_LATER)) => return Ok(HookEnd::Later { output }),
            Ok(End::Exit(code)) => format!("hook {name} failed with exit status {code}"),
            Ok(End::Signal(number)) => format!("hook {name} was ended by signal {number}"),
            Ok(End::TimedOut) => {
                format!(
                    "hook {name} did not end within {} ms and was ended",
                    self.limit.as_millis()
                )
            }
            // A wrong interpreter or a file that is no program: the release is at fault.
            Err(error @ ProgramError::Spawn { .. }) => crate::output::chain(&error),
            Err(error @ ProgramError::Watch { .. }) => return Err(error),
        };
        Ok(HookEnd::Failed { reason, output })
    }
}

/// Keeps the last output for a person; that it cannot be kept is no reason to fail.
fn keep(path: &PathBuf, tail: &mut Tail) {
    if let Err(error) = fs::write(path, tail.bytes()) {
        tracing::warn!(path = %path.display(), %error, "a hook's output could not be kept");
    }
}

#[cfg(test)]
#[path = "hooks_test.rs"]
mod hooks_test;
