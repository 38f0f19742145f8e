//! `cohort confine`: gives up what a program of a release must not have, and becomes it. The agent
//! and the guard start it.

use crate::failure::{Exit, Failure};

/// Returns only if it cannot.
pub(crate) fn run() -> Result<Exit, Failure> {
    std::process::exit(cohort_host::confine::run())
}
