//! Keys of TOML files. An unknown key is rejected with its line and the key probably meant.

use cohort_base::chain;
use cohort_view::hint::Hint;
use cohort_wire::limits::RESPONSE_BYTES_MAX;
use serde::de::DeserializeOwned;
use toml::de::{DeTable, DeValue};

use crate::failure::{Exit, Failure};

/// Largest file, in bytes. Configuration and policies are a few kilobytes; a larger file is the
/// wrong one.
pub(crate) const FILE_BYTES_MAX: u64 = 1024 * 1024;

const _: () = assert!(FILE_BYTES_MAX < RESPONSE_BYTES_MAX);

/// A key that differs by this many edits or more is not a typo of another one.
const EDITS_MAX: usize = 3;

/// The keys allowed in a table. Names are separated by spaces.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct KnownKeys<'k> {
    /// Keys with any value: deserializing checks it.
    pub(crate) plain: &'k str,
    /// Tables, and lists of tables.
    pub(crate) tables: &'k [(&'k str, KnownKeys<'k>)],
    /// Reserved for a later version.
    pub(crate) later: &'k str,
}

impl<'k> KnownKeys<'k> {
    pub(crate) fn names(self) -> impl Iterator<Item = &'k str> {
        self.plain.split_whitespace().chain(self.tables.iter().map(|(name, _)| *name))
    }

    fn table(self, name: &str) -> Option<KnownKeys<'k>> {
        self.tables.iter().find(|(table, _)| *table == name).map(|(_, keys)| *keys)
    }
}

/// Parses a TOML text whose keys are `known`. `file` names it in errors.
pub(crate) fn read<T: DeserializeOwned>(
    text: &str,
    file: &str,
    known: KnownKeys<'_>,
) -> Result<T, Failure> {
    let malformed = |error: &toml::de::Error| {
        let error = format!("cannot parse {file}: {}", without_types(&chain(error)));
        Failure::new("malformed", error).exit(Exit::Usage)
    };
    let document = DeTable::parse(text).map_err(|error| malformed(&error))?;
    File { text, name: file }.check("", document.get_ref(), known)?;
    toml::from_str(text).map_err(|error| malformed(&error))
}

/// A parser's message without the names of our types, which mean nothing to people.
fn without_types(message: &str) -> String {
    let kinds = ["u8", "u16", "u32", "u64", "usize", "i64"];
    let named = |word: &str| kinds.contains(&word.trim_end_matches([',', ':', '`']));
    let mut words = message.split(' ').peekable();
    let mut plain = Vec::new();
    while let Some(word) = words.next() {
        match word {
            "struct" | "enum" if words.next().is_some() => plain.push("a table"),
            word if named(word) => plain.push("a whole number"),
            word => plain.push(word),
        }
    }
    plain.join(" ")
}

struct File<'t> {
    text: &'t str,
    name: &'t str,
}

impl File<'_> {
    fn check(&self, path: &str, table: &DeTable<'_>, known: KnownKeys<'_>) -> Result<(), Failure> {
        for (key, value) in table {
            let name: &str = key.get_ref();
            let full = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            let before = self.text.as_bytes().iter().take(key.span().start);
            let line = before.filter(|byte| **byte == b'\n').count() + 1;
            let place = format!("{} line {line}", self.name);
            if known.later.split_whitespace().any(|later| later == name) {
                let error = format!("{place}: `{full}` is not supported yet");
                return Err(Failure::new("not_yet", error)
                    .hint("reserved for a later version: leave it out")
                    .exit(Exit::Usage));
            }
            if known.names().all(|known| known != name) {
                let error = format!("{place}: unknown key `{full}`");
                let hint = instead(name, known);
                return Err(Failure::new("unknown_key", error).hint(hint).exit(Exit::Usage));
            }
            if let Some(inner) = known.table(name) {
                for table in tables(value.get_ref()) {
                    self.check(&full, table, inner)?;
                }
            }
        }
        Ok(())
    }
}

/// A table, or the tables of a list. Deserializing reports a value of another type.
fn tables<'v, 't>(value: &'v DeValue<'t>) -> Vec<&'v DeTable<'t>> {
    match value {
        DeValue::Table(table) => vec![table],
        DeValue::Array(list) => list.iter().flat_map(|item| tables(item.get_ref())).collect(),
        _ => Vec::new(),
    }
}

/// The key that was probably meant: the same name one table below, or a similar name.
fn instead(name: &str, known: KnownKeys<'_>) -> Hint {
    let has = |(_, keys): &&(&str, KnownKeys<'_>)| keys.names().any(|known| known == name);
    match (known.tables.iter().find(has), nearest(name, known.names())) {
        (Some((table, _)), _) => Hint::Meant(format!("{table}.{name}")),
        (None, Some(near)) => Hint::Meant(near.to_owned()),
        (None, None) => {
            format!("known here: {}", known.names().collect::<Vec<_>>().join(", ")).into()
        }
    }
}

/// The known name most similar to a mistyped one, if any is similar enough.
pub(crate) fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let edits = |known: &str| strsim::damerau_levenshtein(name, known);
    known
        .map(|known| (edits(known), known))
        .filter(|(edits, known)| *edits <= EDITS_MAX && *edits * 2 < known.len().max(3))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, known)| known)
}
