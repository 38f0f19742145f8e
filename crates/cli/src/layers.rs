//! Configuration in layers: a file, its drop-ins, the environment, flags; the later wins, per key.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::failure::{Exit, Failure};
use crate::toml_keys::{self, FILE_BYTES_MAX, Shape};

/// More drop-ins than anybody keeps; beyond it, the folder is probably not one of drop-ins.
const DROP_INS_MAX: usize = 100;

/// What a key holds: how a text from the environment is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A text.
    Text,
    /// A whole number.
    Number,
    /// `true` or `false`.
    Bool,
    /// Texts; in the environment joined by commas.
    List,
    /// Names and texts; in the environment `name=text`, joined by commas. Layers are merged.
    Map,
    /// A path; a relative one starts at the folder of the file that names it.
    Path,
    /// Names and paths.
    PathMap,
}

/// One key of a configuration.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Key {
    /// Its name in the file.
    pub(crate) name: &'static str,
    /// What it holds.
    pub(crate) kind: Kind,
}

/// The configuration of one part of Cohort.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// Its keys.
    pub(crate) keys: &'static [Key],
    /// The same, for checking files.
    pub(crate) shapes: &'static [(&'static str, Shape)],
    /// What stands before a key's name, in capitals, in the environment.
    pub(crate) env_prefix: &'static str,
    /// A configuration that is valid, in which one value at a time is tried.
    pub(crate) sample: fn() -> Table,
}

/// Where a value came from, for errors.
type Source = String;

/// The values so far.
#[derive(Debug)]
pub(crate) struct Layers {
    layout: Layout,
    values: BTreeMap<&'static str, (Value, Source)>,
}

impl Layers {
    /// No values yet.
    pub(crate) fn new(layout: Layout) -> Self {
        Layers { layout, values: BTreeMap::new() }
    }

    /// Adds a file and the drop-ins beside it: `agent.d/*.toml` beside `agent.toml`, by name.
    ///
    /// # Errors
    /// When one cannot be read, or has a key that is not known.
    pub(crate) fn add_file_and_drop_ins(&mut self, file: &Path) -> Result<(), Failure> {
        if file.exists() {
            self.add_file(file)?;
        }
        for drop_in in drop_ins(&file.with_extension("d"))? {
            self.add_file(&drop_in)?;
        }
        Ok(())
    }

    fn add_file(&mut self, file: &Path) -> Result<(), Failure> {
        let name = file.display().to_string();
        let text = read_file(file)?;
        toml_keys::check(&text, &name, self.layout.shapes)?;
        let table: Table =
            toml::from_str(&text).map_err(|error| toml_keys::malformed(&name, &error))?;
        let folder = absolute(file).parent().map(Path::to_owned).unwrap_or_default();
        for key in self.layout.keys {
            if let Some(value) = table.get(key.name) {
                let value = with_paths(key.kind, value.clone(), &folder);
                self.put(key, value, name.clone());
            }
        }
        Ok(())
    }

    /// Adds what the environment says. `get` reads a variable.
    ///
    /// # Errors
    /// When a value is not of its key's kind.
    pub(crate) fn add_env(&mut self, get: impl Fn(&str) -> Option<String>) -> Result<(), Failure> {
        for key in self.layout.keys {
            let variable = format!("{}{}", self.layout.env_prefix, key.name.to_uppercase());
            let Some(text) = get(&variable).filter(|text| !text.is_empty()) else { continue };
            let value = parse_text(key.kind, &text).map_err(|expected| {
                let error = format!("{variable}: `{text}` is not {expected}");
                Failure::new("configuration", error).exit(Exit::Usage)
            })?;
            self.put(key, with_paths(key.kind, value, Path::new("")), variable);
        }
        Ok(())
    }

    /// Adds a flag's value, when it was given.
    ///
    /// # Panics
    /// When the key is not of this configuration: a mistake of the caller that every test finds.
    pub(crate) fn add_flag(&mut self, name: &str, value: Option<Value>) {
        let Some(value) = value else { return };
        let key = self.layout.keys.iter().find(|key| key.name == name);
        let key = key.expect("flags are named after keys of the configuration");
        let flag = format!("--{}", name.replace('_', "-"));
        self.put(key, with_paths(key.kind, value, Path::new("")), flag);
    }

    /// Adds a value that holds unless something else is said.
    pub(crate) fn add_default(&mut self, name: &str, value: Value) {
        if let Some(key) = self.layout.keys.iter().find(|key| key.name == name) {
            self.values.entry(key.name).or_insert((value, "the default".to_owned()));
        }
    }

    fn put(&mut self, key: &Key, value: Value, source: Source) {
        let merged = match (self.values.remove(key.name), value) {
            (Some((Value::Table(mut below), _)), Value::Table(above))
                if matches!(key.kind, Kind::Map | Kind::PathMap) =>
            {
                below.extend(above);
                Value::Table(below)
            }
            (_, value) => value,
        };
        self.values.insert(key.name, (merged, source));
    }

    /// The configuration.
    ///
    /// # Errors
    /// When a value is wrong (named with where it came from) or a key that is needed is missing.
    pub(crate) fn finish<T: DeserializeOwned>(self) -> Result<T, Failure> {
        for (name, (value, source)) in &self.values {
            let mut sample = (self.layout.sample)();
            sample.insert((*name).to_owned(), value.clone());
            if let Err(error) = sample.try_into::<T>() {
                let error = error.message().trim().to_owned();
                return Err(Failure::new("configuration", format!("{source}: {name}: {error}"))
                    .exit(Exit::Usage));
            }
        }
        let table: Table =
            self.values.into_iter().map(|(name, (value, _))| (name.to_owned(), value)).collect();
        for name in (self.layout.sample)().keys() {
            if !table.contains_key(name) {
                let variable = format!("{}{}", self.layout.env_prefix, name.to_uppercase());
                let flag = name.replace('_', "-");
                let error = format!("configuration does not say what `{name}` is");
                return Err(Failure::new("configuration", error)
                    .hint(format!("set `{name}` in the file, {variable}, or --{flag}"))
                    .exit(Exit::Usage));
            }
        }
        table.try_into::<T>().map_err(|error| {
            Failure::new("configuration", error.message().trim()).exit(Exit::Usage)
        })
    }
}

/// Reads a small file as text.
///
/// # Errors
/// Names the file.
pub(crate) fn read_file(file: &Path) -> Result<String, Failure> {
    let name = file.display();
    let failed = |error: io::Error| {
        Failure::new("file", format!("{name} cannot be read: {error}")).exit(Exit::Usage)
    };
    let length = fs::metadata(file).map_err(failed)?.len();
    if length > FILE_BYTES_MAX {
        let error = format!("{name} is {length} bytes long, more than {FILE_BYTES_MAX}");
        return Err(Failure::new("file", error).exit(Exit::Usage));
    }
    fs::read_to_string(file).map_err(failed)
}

fn drop_ins(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |error: io::Error| {
        let error = format!("{} cannot be read: {error}", folder.display());
        Failure::new("file", error).exit(Exit::Usage)
    };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
    }
    if files.len() > DROP_INS_MAX {
        let error = format!("{} has {} drop-ins", folder.display(), files.len());
        return Err(Failure::new("file", error)
            .hint(format!("{DROP_INS_MAX} at the most are read"))
            .exit(Exit::Usage));
    }
    files.sort();
    Ok(files)
}

/// The path from the root on; as it is, when there is no current folder.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

fn with_paths(kind: Kind, value: Value, folder: &Path) -> Value {
    let anchor =
        |text: &str| Value::String(absolute(&folder.join(text)).to_string_lossy().into_owned());
    match (kind, value) {
        (Kind::Path, Value::String(text)) => anchor(&text),
        (Kind::PathMap, Value::Table(table)) => Value::Table(
            table
                .into_iter()
                .map(|(name, value)| match value {
                    Value::String(text) => (name, anchor(&text)),
                    other => (name, other),
                })
                .collect(),
        ),
        (_, value) => value,
    }
}

fn parse_text(kind: Kind, text: &str) -> Result<Value, &'static str> {
    match kind {
        Kind::Text | Kind::Path => Ok(Value::String(text.to_owned())),
        Kind::Number => text.parse().map(Value::Integer).map_err(|_| "a whole number"),
        Kind::Bool => text.parse().map(Value::Boolean).map_err(|_| "`true` or `false`"),
        Kind::List => Ok(list_value(text.split(',').map(str::trim))),
        Kind::Map | Kind::PathMap => {
            let pairs: Option<Vec<_>> = text.split(',').map(|pair| pair.split_once('=')).collect();
            let pairs = pairs.ok_or("of the form `name=text,name=text`")?;
            Ok(map_value(pairs.into_iter().map(|(name, text)| (name.trim(), text.trim()))))
        }
    }
}

/// A list of texts; none when it is empty and so was not given.
pub(crate) fn list_flag(values: &[String]) -> Option<Value> {
    (!values.is_empty()).then(|| list_value(values.iter().map(String::as_str)))
}

/// Pairs `name=text`; none when there are none.
pub(crate) fn map_flag(pairs: &[(String, String)]) -> Option<Value> {
    let pairs_of = pairs.iter().map(|(name, text)| (name.as_str(), text.as_str()));
    (!pairs.is_empty()).then(|| map_value(pairs_of))
}

/// A text, if given.
pub(crate) fn text_flag(value: Option<&impl ToString>) -> Option<Value> {
    value.map(|value| Value::String(value.to_string()))
}

/// A path, if given.
pub(crate) fn path_flag(value: Option<&PathBuf>) -> Option<Value> {
    value.map(|path| Value::String(path.to_string_lossy().into_owned()))
}

fn list_value<'t>(texts: impl Iterator<Item = &'t str>) -> Value {
    Value::Array(texts.map(|text| Value::String(text.to_owned())).collect())
}

fn map_value<'t>(pairs: impl Iterator<Item = (&'t str, &'t str)>) -> Value {
    Value::Table(pairs.map(|(name, text)| (name.to_owned(), text.into())).collect())
}

/// Parses `name=text` for clap.
///
/// # Errors
/// When there is no `=`.
pub(crate) fn parse_pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| format!("`{text}` is not of the form name=text"))
}

#[cfg(test)]
#[path = "layers_test.rs"]
mod layers_test;
