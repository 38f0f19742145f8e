//! Failures that are tried again for as long as they last: told once.

use std::error::Error;

use cohort_base::chain;

/// What was told last.
#[derive(Debug, Default)]
pub(crate) struct Complaint(Option<String>);

impl Complaint {
    /// A warning for the log, unless it was the last one too.
    pub(crate) fn of(&mut self, what: &'static str, error: &(dyn Error + 'static)) {
        let error = chain(error);
        if self.0.as_ref() == Some(&error) {
            tracing::debug!(error, "{what}");
        } else {
            tracing::warn!(error, "{what}");
            self.0 = Some(error);
        }
    }

    /// It succeeded: the next failure is news.
    pub(crate) fn ended(&mut self) {
        self.0 = None;
    }
}
