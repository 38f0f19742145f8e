//! Errands of the leader that fail, and since when.
//!
//! Whatever a leader does outside of its group may fail while something older is still good enough
//! to work with. It is told all the same, and here it is not lost.

use std::collections::BTreeMap;

use cohort_core::errand::{Errand, HubFault};

/// A failure that lasts: the last reason, and since when there was no success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lasting<F> {
    pub why: F,
    /// On the member's monotonic clock, in milliseconds.
    pub since_ms: u64,
}

impl<F> Lasting<F> {
    /// Records the outcome of another attempt.
    pub fn ended(lasting: &mut Option<Self>, now_ms: u64, ended: Result<(), F>) {
        let since_ms = lasting.as_ref().map_or(now_ms, |lasting| lasting.since_ms);
        *lasting = ended.err().map(|why| Lasting { why, since_ms });
    }
}

/// The errands at the hub that fail.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Errands(BTreeMap<Errand, Lasting<HubFault>>);

impl Errands {
    /// Records the outcome of an errand. Returns whether people see anything else than before.
    pub fn ended(&mut self, now_ms: u64, errand: Errand, ended: Result<(), HubFault>) -> bool {
        let before = self.0.remove(&errand);
        let mut lasting = before.clone();
        Lasting::ended(&mut lasting, now_ms, ended);
        let news = lasting != before;
        self.0.extend(lasting.map(|lasting| (errand, lasting)));
        news
    }

    /// Those that fail now.
    pub fn failing(&self) -> impl Iterator<Item = (&Errand, &Lasting<HubFault>)> {
        self.0.iter()
    }
}

#[cfg(test)]
mod errands_test {
    use super::*;

    fn refused(text: &str) -> Result<(), HubFault> {
        Err(HubFault::Refused { text: text.to_owned() })
    }

    fn failing(errands: &Errands) -> Vec<(Errand, u64)> {
        errands.failing().map(|(errand, it)| (errand.clone(), it.since_ms)).collect()
    }

    #[test]
    fn a_failure_lasts_from_its_first_attempt_to_the_next_success() {
        let mut errands = Errands::default();
        assert!(!errands.ended(5, Errand::WriteRecords, Ok(())));
        assert!(errands.ended(10, Errand::WriteRecords, refused("no")));
        assert!(!errands.ended(20, Errand::WriteRecords, refused("no")), "nothing new");
        assert!(errands.ended(30, Errand::WriteRecords, refused("never")), "another reason");
        assert!(!errands.ended(40, Errand::ReadRegistry, Ok(())), "another errand");
        assert_eq!(failing(&errands), [(Errand::WriteRecords, 10)]);
        assert!(errands.ended(50, Errand::WriteRecords, Ok(())));
        assert_eq!(failing(&errands), []);
    }
}
