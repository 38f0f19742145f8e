//! How a command ends: an exit code that programs can rely on, and a failure with hints.

use std::error::Error;
use std::process::ExitCode;

use cohort_wire::http::CallError;
use serde::Serialize;

/// How a command ended. The numbers are documented in `docs/operating.md` and never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done, or healthy, or nothing to do.
    Done,
    /// It failed.
    Failed,
    /// It was asked for wrongly.
    Usage,
    /// Not healthy, or held.
    Unhealthy,
    /// Waited for too long.
    TimedOut,
    /// `rollout plan` and `app diff`: there is something to do.
    SomethingToDo,
}

impl Exit {
    /// The number.
    pub(crate) fn code(self) -> u8 {
        match self {
            Exit::Done => 0,
            Exit::Failed => 1,
            Exit::Usage => 2,
            Exit::Unhealthy => 3,
            Exit::TimedOut => 4,
            Exit::SomethingToDo => 10,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit.code())
    }
}

/// Why a command did not do what it was asked for: what is wrong, where, and what to type next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Failure {
    /// A word for programs.
    pub(crate) kind: String,
    /// A sentence for people.
    pub(crate) error: String,
    /// What to do; often the next command to type.
    pub(crate) hints: Vec<String>,
    /// The exit code.
    #[serde(skip)]
    pub(crate) exit: Exit,
}

impl Failure {
    /// It failed.
    pub(crate) fn new(kind: &str, error: impl Into<String>) -> Self {
        let (kind, error) = (kind.to_owned(), error.into());
        Failure { kind, error, hints: Vec::new(), exit: Exit::Failed }
    }

    /// It was asked for wrongly.
    pub(crate) fn usage(error: impl Into<String>) -> Self {
        Failure { exit: Exit::Usage, ..Failure::new("usage", error) }
    }

    /// An error with all its causes, in one line.
    pub(crate) fn of(kind: &str, error: &(dyn Error + 'static)) -> Self {
        Failure::new(kind, chain(error))
    }

    /// With one more hint.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hints.push(hint.into());
        self
    }

    /// With more hints.
    pub(crate) fn hints(mut self, hints: impl IntoIterator<Item = String>) -> Self {
        self.hints.extend(hints);
        self
    }

    /// With another exit code.
    pub(crate) fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let text = match &error {
            // The answer is the cause, and says the same.
            CallError::Answered { answer, .. } => answer.error.clone(),
            other => chain(other),
        };
        Failure::new(error.kind(), text).hints(error.hints())
    }
}

/// An error and its causes, each said once.
pub(crate) fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = error.source();
    }
    text
}
