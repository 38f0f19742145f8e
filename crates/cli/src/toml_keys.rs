//! Keys of TOML files. An unknown key is refused with its line and the key that was probably meant.

use cohort_view::hint::Hint;
use cohort_wire::limits::RESPONSE_BYTES_MAX;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::failure::{Exit, Failure};

/// Configuration and policies are a few kilobytes; anything beyond this is the wrong file.
pub(crate) const FILE_BYTES_MAX: u64 = 1024 * 1024;

const _: () = assert!(FILE_BYTES_MAX < RESPONSE_BYTES_MAX);

/// A key this many edits away or more is not a typing error for another one.
const EDITS_MAX: usize = 3;

/// What is allowed under a key.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    /// Anything: whoever deserializes it checks it.
    Value,
    /// A table with these keys.
    Table(&'static [(&'static str, Shape)]),
    /// A list of tables with these keys.
    Tables(&'static [(&'static str, Shape)]),
    /// Reserved for a later version.
    Later,
}

/// Checks the keys of a TOML text. `file` names it in errors.
pub(crate) fn check(text: &str, file: &str, known: &[(&str, Shape)]) -> Result<(), Failure> {
    let document = DeTable::parse(text).map_err(|error| malformed(file, &error))?;
    File { text, name: file }.check("", document.get_ref(), known)
}

/// The error for a file that is not TOML, or has a value of the wrong type.
pub(crate) fn malformed(file: &str, error: &toml::de::Error) -> Failure {
    let error = format!("cannot parse {file}: {}", error.to_string().trim_end());
    Failure::new("malformed", error).exit(Exit::Usage)
}

struct File<'t> {
    text: &'t str,
    name: &'t str,
}

impl File<'_> {
    fn check(
        &self,
        path: &str,
        table: &DeTable<'_>,
        known: &[(&str, Shape)],
    ) -> Result<(), Failure> {
        for (key, value) in table {
            let name: &str = key.get_ref();
            let full = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
            let before = self.text.as_bytes().iter().take(key.span().start);
            let line = before.filter(|byte| **byte == b'\n').count() + 1;
            let place = format!("{} line {line}", self.name);
            match known.iter().find(|(known, _)| *known == name).map(|(_, shape)| *shape) {
                None => {
                    let error = format!("{place}: unknown key `{full}`");
                    let hint = instead(name, known);
                    return Err(Failure::new("unknown_key", error).hint(hint).exit(Exit::Usage));
                }
                Some(Shape::Later) => {
                    let error = format!("{place}: `{full}` is not supported yet");
                    return Err(Failure::new("not_yet", error)
                        .hint("reserved for a later version: leave it out")
                        .exit(Exit::Usage));
                }
                Some(Shape::Value) => {}
                Some(Shape::Table(inner)) => {
                    if let DeValue::Table(table) = value.get_ref() {
                        self.check(&full, table, inner)?;
                    }
                }
                Some(Shape::Tables(inner)) => {
                    for table in tables(value) {
                        self.check(&full, table, inner)?;
                    }
                }
            }
        }
        Ok(())
    }
}

/// The tables of a list. Deserializing reports a value of another type.
fn tables<'v, 't>(value: &'v Spanned<DeValue<'t>>) -> impl Iterator<Item = &'v DeTable<'t>> {
    let list = match value.get_ref() {
        DeValue::Array(list) => Some(list),
        _ => None,
    };
    list.into_iter().flat_map(|list| list.iter()).filter_map(|item| match item.get_ref() {
        DeValue::Table(table) => Some(table),
        _ => None,
    })
}

/// The key that was probably meant: the same name one table below, or a similar name.
fn instead(name: &str, known: &[(&str, Shape)]) -> Hint {
    let names =
        || known.iter().filter(|(_, shape)| !matches!(shape, Shape::Later)).map(|(name, _)| *name);
    let below = known.iter().find_map(|(table, shape)| match shape {
        Shape::Table(inner) if inner.iter().any(|(known, _)| *known == name) => Some(*table),
        Shape::Table(_) | Shape::Tables(_) | Shape::Value | Shape::Later => None,
    });
    match (below, nearest(name, names())) {
        (Some(table), _) => Hint::Meant(format!("{table}.{name}")),
        (None, Some(near)) => Hint::Meant(near.to_owned()),
        (None, None) => format!("known here: {}", names().collect::<Vec<_>>().join(", ")).into(),
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
