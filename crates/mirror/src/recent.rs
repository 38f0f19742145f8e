//! What was heard lately, and is believed for a while: *there is none*, *it sent wrong bytes*.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Names that are remembered. Beyond that they are asked for again.
const NAMES_MAX: usize = 4096;

/// Names that something was said of, for a while.
pub(crate) struct Recent {
    valid: Duration,
    names: Mutex<HashMap<String, Instant>>,
}

impl Recent {
    pub(crate) fn new(valid: Duration) -> Self {
        Self { valid, names: Mutex::default() }
    }

    pub(crate) fn knows(&self, name: &str) -> bool {
        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        names.get(name).is_some_and(|noted| noted.elapsed() < self.valid)
    }

    pub(crate) fn note(&self, name: &str) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= NAMES_MAX {
            names.retain(|_, noted| noted.elapsed() < self.valid);
        }
        if names.len() < NAMES_MAX {
            names.insert(name.to_owned(), Instant::now());
        }
    }
}
