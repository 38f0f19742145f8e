//! Failures that are tried again for as long as they last: each cause is told once, and the end.

use std::collections::BTreeSet;
use std::error::Error;

use cohort_base::chain;
use parking_lot::Mutex;

/// Causes that are told before the next success. 8: as many as the members of a group have at the
/// same time; further ones are most likely the same with another detail.
const CAUSES_MAX: usize = 8;

/// What this agent asks of others, and does not get.
#[derive(Debug, Default)]
pub(crate) struct Complaints {
    /// No member takes this server into the group.
    pub not_taken: Mutex<Complaint>,
    /// No member gives it orders.
    pub no_orders: Mutex<Complaint>,
    /// The hub does not say where the members are.
    pub no_members: Mutex<Complaint>,
    /// No member takes its reports.
    pub no_reports: Mutex<Complaint>,
}

/// What was told since the last success.
#[derive(Debug, Default)]
pub(crate) struct Complaint {
    /// Failures since then.
    failures: usize,
    causes: BTreeSet<String>,
}

impl Complaint {
    /// A failure: a warning for the log, unless this cause was told.
    pub(crate) fn of(&mut self, what: &'static str, error: &(dyn Error + 'static)) {
        self.after(0, what, error);
    }

    /// The same, once there were more than `patience` failures: a few are not worth a line.
    pub(crate) fn after(
        &mut self,
        patience: usize,
        what: &'static str,
        error: &(dyn Error + 'static),
    ) {
        self.failures = self.failures.saturating_add(1);
        let error = chain(error);
        let told = self.causes.contains(&error) || self.causes.len() >= CAUSES_MAX;
        if told || self.failures <= patience {
            tracing::debug!(error, "{what}");
        } else {
            tracing::warn!(error, "{what}");
            self.causes.insert(error);
        }
    }

    /// It succeeded, which is news if a failure was told; the next failure is, too.
    pub(crate) fn ended(&mut self, what: &'static str) {
        if !std::mem::take(self).causes.is_empty() {
            tracing::info!("{what}");
        }
    }

    /// How many causes were told since the last success.
    #[cfg(test)]
    pub(crate) fn told(&self) -> usize {
        self.causes.len()
    }
}

#[cfg(test)]
mod complaint_test {
    use std::io;

    use super::{CAUSES_MAX, Complaint};

    fn error(text: &str) -> io::Error {
        io::Error::other(text.to_owned())
    }

    #[test]
    fn each_cause_is_told_once_until_it_works_again() {
        let mut complaint = Complaint::default();
        for (cause, told) in [("refused", 1), ("refused", 1), ("certificate", 2), ("refused", 2)] {
            complaint.of("no answer", &error(cause));
            assert_eq!(complaint.told(), told, "{cause}");
        }
        complaint.ended("answers again");
        assert_eq!(complaint.told(), 0);
        complaint.of("no answer", &error("refused"));
        assert_eq!(complaint.told(), 1, "it failed again");
    }

    #[test]
    fn a_few_failures_are_not_worth_a_line_and_endless_causes_are_not_told() {
        let mut complaint = Complaint::default();
        for told in [0, 0, 1, 1] {
            complaint.after(2, "no answer", &error("refused"));
            assert_eq!(complaint.told(), told);
        }
        for port in 0..100 {
            complaint.after(2, "no answer", &error(&port.to_string()));
        }
        assert_eq!(complaint.told(), CAUSES_MAX);
    }
}
