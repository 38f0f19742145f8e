//! Why a step was not completed, and what to blame.

use std::fmt;

use cohort_base::{FileError, chain};
use cohort_core::report::Blame;
use cohort_core::steps::Failure;

use crate::hooks::Hook;
use crate::own_values::NotSet;
use crate::program::ProgramError;
use crate::record::HostError;
use crate::service::ServiceError;
use crate::service_file::ServiceFileError;
use crate::unpack::UnpackError;

pub(crate) fn failure(blame: Blame, reason: impl Into<String>) -> Failure {
    Failure { blame, reason: reason.into(), output: String::new() }
}

/// Why a step was not completed.
#[derive(Debug)]
pub(crate) enum Interrupt {
    Failed(Box<Failure>),
    /// A hook asked for a retry.
    Later(Hook),
    /// The agent has to stop.
    Fatal(HostError),
}

impl From<Failure> for Interrupt {
    fn from(failure: Failure) -> Self {
        Interrupt::Failed(Box::new(failure))
    }
}

impl From<HostError> for Interrupt {
    fn from(error: HostError) -> Self {
        Interrupt::Fatal(error)
    }
}

/// Errors that fail a step, and what to blame for each.
macro_rules! fails_the_step {
    ($($error:ty => $blame:expr),+ $(,)?) => {
        $(impl From<$error> for Interrupt {
            fn from(error: $error) -> Self {
                let blame: fn(&$error) -> Blame = $blame;
                failure(blame(&error), chain(&error)).into()
            }
        })+
    };
}

fails_the_step! {
    FileError => |_| Blame::Surroundings,
    NotSet => |_| Blame::Surroundings,
    ProgramError => |_| Blame::Surroundings,
    ServiceError => ServiceError::blame,
    ServiceFileError => ServiceFileError::blame,
    UnpackError => UnpackError::blame,
}

impl fmt::Display for Interrupt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Interrupt::Failed(failure) => f.write_str(&failure.reason),
            Interrupt::Later(hook) => write!(f, "hook {} asked to be retried", hook.name()),
            Interrupt::Fatal(error) => f.write_str(&chain(error)),
        }
    }
}
