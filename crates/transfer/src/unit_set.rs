//! A set of units of one artifact, such as those on disk or those missing.

use serde::{Deserialize, Serialize};

/// A set of unit indices below a fixed count; one bit per unit (32 KiB for the longest artifact).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnitSet {
    count: u32,
    held: u32,
    words: Vec<u64>,
}

/// A run of consecutive units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UnitRun {
    /// The first unit, from 0.
    pub first: u32,
    /// How many, at least 1.
    pub count: u32,
}

impl UnitRun {
    /// The unit after the last.
    #[must_use]
    pub fn end(self) -> u32 {
        self.first.saturating_add(self.count)
    }
}

impl UnitSet {
    /// No unit out of `count`.
    #[must_use]
    pub fn empty(count: u32) -> Self {
        Self { count, held: 0, words: vec![0; count.div_ceil(64) as usize] }
    }

    /// Every unit out of `count`.
    #[must_use]
    pub fn full(count: u32) -> Self {
        let mut set = Self::empty(count);
        set.insert_run(UnitRun { first: 0, count });
        set
    }

    /// Units of the artifact.
    #[must_use]
    pub fn count(&self) -> u32 {
        self.count
    }

    /// Units in the set.
    #[must_use]
    pub fn held(&self) -> u32 {
        self.held
    }

    /// Whether every unit is in the set.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.held == self.count
    }

    /// Whether no unit is in the set.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Whether the unit is in the set; units beyond the count never are.
    #[must_use]
    pub fn contains(&self, index: u32) -> bool {
        index < self.count && self.words[(index / 64) as usize] >> (index % 64) & 1 == 1
    }

    /// Adds a unit, unless it is beyond the count. Returns whether it is new.
    pub fn insert(&mut self, index: u32) -> bool {
        if index >= self.count || self.contains(index) {
            return false;
        }
        self.words[(index / 64) as usize] |= 1 << (index % 64);
        self.held += 1;
        true
    }

    /// Removes a unit. Returns whether it was in the set.
    pub fn remove(&mut self, index: u32) -> bool {
        if !self.contains(index) {
            return false;
        }
        self.words[(index / 64) as usize] &= !(1 << (index % 64));
        self.held -= 1;
        true
    }

    /// Adds all units of a run.
    pub fn insert_run(&mut self, run: UnitRun) {
        for index in run.first..run.end().min(self.count) {
            self.insert(index);
        }
    }

    /// Removes all units of a run.
    pub fn remove_run(&mut self, run: UnitRun) {
        for index in run.first..run.end().min(self.count) {
            self.remove(index);
        }
    }

    /// The units that are not in the set.
    #[must_use]
    pub fn complement(&self) -> Self {
        let mut set = Self {
            count: self.count,
            held: self.count - self.held,
            words: self.words.iter().map(|word| !word).collect(),
        };
        if let (Some(last), used @ 1..) = (set.words.last_mut(), self.count % 64) {
            *last &= (1 << used) - 1;
        }
        set
    }

    /// The first run of units in the set at or after `from`, of at most `count_max` units.
    #[must_use]
    pub fn run_from(&self, from: u32, count_max: u32) -> Option<UnitRun> {
        let mut index = from;
        while index < self.count {
            let word = self.words[(index / 64) as usize] >> (index % 64);
            if word != 0 {
                index += word.trailing_zeros();
                break;
            }
            index = (index / 64 + 1) * 64;
        }
        if index >= self.count || count_max == 0 {
            return None;
        }
        let mut count = 1;
        while count < count_max && self.contains(index + count) {
            count += 1;
        }
        Some(UnitRun { first: index, count })
    }

    /// Adds all units of another set of the same count.
    pub fn union(&mut self, other: &Self) {
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
        self.count_again();
    }

    /// Removes all units of another set.
    pub fn subtract(&mut self, other: &Self) {
        for (word, less) in self.words.iter_mut().zip(&other.words) {
            *word &= !less;
        }
        self.count_again();
    }

    /// Keeps only the units that are in another set too.
    pub fn intersect(&mut self, other: &Self) {
        for (index, word) in self.words.iter_mut().enumerate() {
            *word &= other.words.get(index).copied().unwrap_or(0);
        }
        self.count_again();
    }

    /// The first unit in both sets, from the start of the word of 64 units that holds `from`.
    #[must_use]
    pub fn first_common_from(&self, from: u32, other: &Self) -> Option<u32> {
        let words = self.words.iter().zip(&other.words).zip(0_u32..).skip((from / 64) as usize);
        let found = words.map(|((a, b), at)| (a & b, at)).find(|(word, _)| *word != 0);
        found.map(|(word, at)| at * 64 + word.trailing_zeros())
    }

    /// The lowest `runs_max` runs of the set, in order.
    #[must_use]
    pub fn runs(&self, runs_max: usize) -> Vec<UnitRun> {
        let mut runs = Vec::new();
        let mut from = 0;
        while runs.len() < runs_max
            && let Some(run) = self.run_from(from, u32::MAX)
        {
            from = run.end();
            runs.push(run);
        }
        runs
    }

    /// A set of the units in some runs; those beyond the count are ignored.
    #[must_use]
    pub fn from_runs(count: u32, runs: &[UnitRun]) -> Self {
        let mut set = Self::empty(count);
        for run in runs {
            set.insert_run(*run);
        }
        set
    }

    fn count_again(&mut self) {
        self.held = self.words.iter().map(|word| word.count_ones()).sum();
    }
}
