//! Keys of TOML files: one that is not known is refused by name, with its place and its neighbour.

use cohort_wire::limits::RESPONSE_BYTES_MAX;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::failure::{Exit, Failure};

/// Configuration and policies are some kilobytes; a file beyond this is not one.
pub(crate) const FILE_BYTES_MAX: u64 = 1024 * 1024;

const _: () = assert!(FILE_BYTES_MAX < RESPONSE_BYTES_MAX);

/// How far a typing mistake may be from what was meant, in single edits.
const EDITS_MAX: usize = 3;

/// What is expected under a key.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Shape {
    /// A value, checked elsewhere.
    Value,
    /// A table of keys of the user's own.
    Free,
    /// A table with these keys.
    Table(&'static [(&'static str, Shape)]),
    /// A list of tables with these keys.
    Tables(&'static [(&'static str, Shape)]),
    /// A name that a later version will know.
    Later,
}

/// Checks the keys of a TOML text. `file` names it in errors.
///
/// # Errors
/// The first text that is no TOML, or the first key that is unknown or not yet known.
pub(crate) fn check(
    text: &str,
    file: &str,
    known: &'static [(&'static str, Shape)],
) -> Result<(), Failure> {
    let document = DeTable::parse(text).map_err(|error| malformed(file, &error))?;
    check_table(text, file, "", document.get_ref(), known)
}

/// A text that cannot be read as TOML, or as what was expected.
pub(crate) fn malformed(file: &str, error: &toml::de::Error) -> Failure {
    Failure::new("malformed", format!("{file} cannot be read: {}", error.to_string().trim_end()))
        .exit(Exit::Usage)
}

fn check_table(
    text: &str,
    file: &str,
    path: &str,
    table: &DeTable<'_>,
    known: &'static [(&'static str, Shape)],
) -> Result<(), Failure> {
    for (key, value) in table {
        let name: &str = key.get_ref();
        let full = if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") };
        let line = line_of(text, key.span().start);
        match known.iter().find(|(known, _)| *known == name).map(|(_, shape)| *shape) {
            None => return Err(unknown(file, line, &full, name, known)),
            Some(Shape::Later) => {
                let error = format!("{file} line {line}: `{full}` is not supported yet");
                return Err(Failure::new("not_yet", error)
                    .hint("a later version of Cohort will know it; leave it out until then")
                    .exit(Exit::Usage));
            }
            Some(Shape::Value | Shape::Free) => {}
            Some(Shape::Table(inner)) => {
                if let DeValue::Table(table) = value.get_ref() {
                    check_table(text, file, &full, table, inner)?;
                }
            }
            Some(Shape::Tables(inner)) => {
                for table in tables(value) {
                    check_table(text, file, &full, table, inner)?;
                }
            }
        }
    }
    Ok(())
}

/// The tables of a list; a value of another form is told by whoever reads it.
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

fn unknown(
    file: &str,
    line: usize,
    full: &str,
    name: &str,
    known: &'static [(&'static str, Shape)],
) -> Failure {
    let error = format!("{file} line {line}: unknown key `{full}`");
    let names = known.iter().filter(|(_, shape)| !matches!(shape, Shape::Later));
    let failure = Failure::new("unknown_key", error).exit(Exit::Usage);
    // The right name in the wrong table.
    let inside = names.clone().find_map(|(table, shape)| match shape {
        Shape::Table(inner) if inner.iter().any(|(known, _)| *known == name) => Some(*table),
        Shape::Table(_) | Shape::Tables(_) | Shape::Value | Shape::Free | Shape::Later => None,
    });
    match (nearest(name, names.clone().map(|(name, _)| *name)), inside) {
        (_, Some(table)) => failure.hint(format!("did you mean `{table}.{name}`?")),
        (Some(near), None) => failure.hint(format!("did you mean `{near}`?")),
        (None, None) => {
            let all: Vec<&str> = names.map(|(name, _)| *name).collect();
            failure.hint(format!("known here: {}", all.join(", ")))
        }
    }
}

/// The known name that a mistaken one is nearest to, if any is near enough.
pub(crate) fn nearest<'k>(name: &str, known: impl Iterator<Item = &'k str>) -> Option<&'k str> {
    let edits = |known: &str| strsim::damerau_levenshtein(name, known);
    known
        .map(|known| (edits(known), known))
        .filter(|(edits, known)| *edits <= EDITS_MAX && *edits * 2 < known.len().max(3))
        .min_by_key(|(edits, _)| *edits)
        .map(|(_, known)| known)
}

fn line_of(text: &str, at: usize) -> usize {
    text.as_bytes().iter().take(at).filter(|byte| **byte == b'\n').count() + 1
}
