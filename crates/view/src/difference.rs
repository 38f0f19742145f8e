//! The differences between two JSON values, value by value.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::Value;

/// One value that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Change {
    /// Its key, such as `update.max_parallel`.
    pub key: String,
    /// The applied value; `None` if absent.
    pub before: Option<Value>,
    /// The value in the file; `None` if absent.
    pub after: Option<Value>,
}

impl Change {
    /// `~ key = before -> after`, `+ key = after` or `- key = before`.
    #[must_use]
    pub fn line(&self) -> String {
        match (&self.before, &self.after) {
            (Some(before), Some(after)) => format!("~ {} = {before} -> {after}\n", self.key),
            (None, Some(after)) => format!("+ {} = {after}\n", self.key),
            (Some(before), None) => format!("- {} = {before}\n", self.key),
            (None, None) => String::new(),
        }
    }
}

/// Every value that differs, by key.
#[must_use]
pub fn difference(before: &Value, after: &Value) -> Vec<Change> {
    let (mut old, mut new) = (BTreeMap::new(), BTreeMap::new());
    flatten("", before, &mut old);
    flatten("", after, &mut new);
    let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
    keys.into_iter()
        .filter(|key| old.get(*key) != new.get(*key))
        .map(|key| Change {
            key: key.clone(),
            before: old.get(key).cloned(),
            after: new.get(key).cloned(),
        })
        .collect()
}

/// A list of plain values counts as one value: `max_parallel` reads better as a whole.
fn flatten(path: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
    let below = |key: &str| match path {
        "" => key.to_owned(),
        path => format!("{path}.{key}"),
    };
    match value {
        Value::Null => {}
        Value::Object(map) => {
            for (key, value) in map {
                flatten(&below(key), value, into);
            }
        }
        Value::Array(list) if list.iter().any(Value::is_object) => {
            for (index, value) in list.iter().enumerate() {
                flatten(&format!("{path}[{}]", index + 1), value, into);
            }
        }
        plain => {
            into.insert(path.to_owned(), plain.clone());
        }
    }
}

#[cfg(test)]
#[path = "difference_test.rs"]
mod difference_test;
