//! One line of a script, and the values in it.

use std::collections::BTreeMap;

use cohort_core::ids::{AppId, ServerId};
use cohort_core::report::Step;

use crate::fleet::build;
use crate::fleet::server::Part;

const DAY_MS: i64 = 86_400_000;

/// The words of one line: the verb, plain words, and `key=value` pairs.
pub(super) struct Line<'a> {
    pub(super) verb: &'a str,
    pub(super) words: Vec<&'a str>,
    pub(super) pairs: BTreeMap<&'a str, &'a str>,
}

impl<'a> Line<'a> {
    pub(super) fn parse(text: &'a str) -> Line<'a> {
        let mut all = text.split_whitespace();
        let verb = all.next().unwrap_or_default();
        let (mut words, mut pairs) = (Vec::new(), BTreeMap::new());
        for word in all {
            match word.split_once('=') {
                Some((key, value)) => {
                    pairs.insert(key, value);
                }
                None => words.push(word),
            }
        }
        Line { verb, words, pairs }
    }

    pub(super) fn app(&self) -> AppId {
        AppId::new(self.pairs.get("app").copied().unwrap_or("web")).expect("an app")
    }

    /// The part of a data directory that is lost.
    pub(super) fn part(&self) -> Part {
        match self.pairs["part"] {
            "artifacts" => Part::Artifacts,
            "apps" => Part::Apps,
            "kill" => Part::Kill,
            "boot-epoch" => Part::BootEpoch,
            _ => Part::Everything,
        }
    }

    /// How far a clock is ahead, in milliseconds.
    pub(super) fn ahead_ms(&self) -> i64 {
        let days = self.pairs["ahead"].strip_suffix('d').expect("a number of days");
        days.parse::<i64>().expect("a number of days") * DAY_MS
    }

    pub(super) fn rest(&self) -> String {
        self.words.join(" ")
    }
}

/// `s03`, or `s03-s07`.
pub(super) fn servers_of(word: &str) -> Vec<ServerId> {
    let number =
        |text: &str| -> usize { text.trim_start_matches('s').parse().expect("s and a number") };
    match word.split_once('-') {
        Some((from, to)) => (number(from)..=number(to)).map(build::server).collect(),
        None => vec![build::server(number(word))],
    }
}

pub(super) fn step_of(text: &str) -> Step {
    Step::ALL.into_iter().find(|step| step.name() == text).expect("a step")
}

pub(super) fn ms_of(text: &str) -> u64 {
    cohort_core::policy::Duration::try_from(text.to_owned()).expect("a duration").ms
}

pub(super) fn value_of(text: &str) -> serde_json::Value {
    if text.contains(',') {
        text.split(',').map(value_of).collect()
    } else if let Ok(number) = text.parse::<u64>() {
        number.into()
    } else if let Ok(word) = text.parse::<bool>() {
        word.into()
    } else {
        text.into()
    }
}
