//! How a command ends: an exit code that programs can rely on, or a failure with hints.

use std::error::Error;
use std::process::ExitCode;

use cohort_base::chain;
use cohort_view::hint::Hint;
use cohort_wire::http::CallError;
use serde::Serialize;

/// Exit codes. Documented in `docs/operating.md`; they never change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Done, healthy, or nothing to do.
    Done = 0,
    Failed = 1,
    /// Invalid arguments, configuration or policy file.
    Usage = 2,
    /// Not healthy, or held.
    Unhealthy = 3,
    TimedOut = 4,
    /// `rollout plan` and `app diff`: there are changes to make.
    SomethingToDo = 10,
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> ExitCode {
        ExitCode::from(exit as u8)
    }
}

/// Why a command failed, and what to do next.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Failure {
    /// A keyword for programs, such as `no_such_group`.
    pub(crate) kind: String,
    /// The error with its causes, in one line.
    pub(crate) error: String,
    /// What to do next; often a command to type.
    pub(crate) hints: Vec<Hint>,
    #[serde(skip)]
    pub(crate) exit: Exit,
}

impl Failure {
    /// A failure that exits with [`Exit::Failed`].
    pub(crate) fn new(kind: &str, error: impl Into<String>) -> Self {
        let (kind, error) = (kind.to_owned(), error.into());
        Failure { kind, error, hints: Vec::new(), exit: Exit::Failed }
    }

    /// A failure that exits with [`Exit::Usage`].
    pub(crate) fn usage(error: impl Into<String>) -> Self {
        Failure::new("usage", error).exit(Exit::Usage)
    }

    /// A failure from an error with its causes.
    pub(crate) fn of(kind: &str, error: &(dyn Error + 'static)) -> Self {
        Failure::new(kind, chain(error))
    }

    pub(crate) fn hint(mut self, hint: impl Into<Hint>) -> Self {
        self.hints.push(hint.into());
        self
    }

    pub(crate) fn hints(mut self, hints: impl IntoIterator<Item = impl Into<Hint>>) -> Self {
        self.hints.extend(hints.into_iter().map(Into::into));
        self
    }

    pub(crate) fn exit(mut self, exit: Exit) -> Self {
        self.exit = exit;
        self
    }
}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Self {
        let text = match &error {
            // Its cause is the response, with the same text.
            CallError::Answered { answer, .. } => answer.error.clone(),
            other => chain(other),
        };
        Failure::new(error.kind(), text).hints(error.hints())
    }
}

/// Turns errors into failures: `Keys::load(dir).or_fail("keys")?`.
pub(crate) trait OrFail<T> {
    fn or_fail(self, kind: &str) -> Result<T, Failure>;
}

impl<T, E: Error + 'static> OrFail<T> for Result<T, E> {
    fn or_fail(self, kind: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure::of(kind, &error))
    }
}
