//! Layered configuration: a file, its drop-ins, the environment, flags; for each key, the last
//! wins.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use cohort_artifact::client::without_secrets;
use cohort_base::FileError;
use serde::Serialize;
use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::failure::{Exit, Failure};
use crate::toml_keys::{self, FILE_BYTES_MAX, KnownKeys};

/// Most drop-ins; a directory with more files is probably not one of drop-ins.
const DROP_INS_MAX: usize = 100;

/// The type of a value: how an environment variable is parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Number,
    Bool,
    /// Strings, separated by commas in the environment.
    List,
    /// Names and strings, as comma-separated `name=text` in the environment. Layers are merged.
    Map,
    /// Names and whole numbers, as comma-separated `name=number` in the environment. Layers are
    /// merged.
    NumberMap,
    /// A path, relative to the file that contains it.
    Path,
    /// Names, and paths or lists that start with one. Layers are merged.
    PathMap,
}

/// The configuration of an agent or a hub.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layout {
    /// Each type, and its keys, separated by spaces.
    pub(crate) keys: &'static [(Kind, &'static str)],
    pub(crate) env_prefix: &'static str,
    /// The required keys with valid values. Each value of a layer is tried together with only
    /// these, so that an error can name its source.
    pub(crate) required: &'static [(&'static str, &'static str)],
}

impl Layout {
    /// Every key by its name in the file; upper case in the environment, with dashes as a flag.
    pub(crate) fn keys(self) -> impl Iterator<Item = (Kind, &'static str)> {
        self.keys.iter().flat_map(|(kind, names)| names.split_whitespace().map(|it| (*kind, it)))
    }
}

/// The source of a value, for errors.
type Source = String;

/// A key that a layer sets.
#[derive(Debug, Serialize)]
pub(crate) struct Setting {
    pub(crate) key: &'static str,
    pub(crate) value: Value,
    pub(crate) from: Source,
}

#[derive(Debug)]
pub(crate) struct Layers {
    layout: Layout,
    values: BTreeMap<&'static str, (Value, Source)>,
}

impl Layers {
    pub(crate) fn new(layout: Layout) -> Self {
        Layers { layout, values: BTreeMap::new() }
    }

    /// Adds a file and its drop-ins by name: `agent.d/*.toml` next to `agent.toml`.
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
        let names: Vec<&str> = self.layout.keys().map(|(_, name)| name).collect();
        let known = KnownKeys { plain: &names.join(" "), ..KnownKeys::default() };
        let table: Table = toml_keys::read(&read_file(file)?, &name, known)?;
        let folder = absolute(file).parent().map(Path::to_owned).unwrap_or_default();
        for (kind, key) in self.layout.keys() {
            if let Some(value) = table.get(key) {
                let value = with_paths(kind, value.clone(), &folder);
                self.put(kind, key, value, name.clone());
            }
        }
        Ok(())
    }

    /// Adds environment variables. `get` reads one.
    pub(crate) fn add_env(&mut self, get: impl Fn(&str) -> Option<String>) -> Result<(), Failure> {
        for (kind, key) in self.layout.keys() {
            let variable = format!("{}{}", self.layout.env_prefix, key.to_uppercase());
            let Some(text) = get(&variable).filter(|text| !text.is_empty()) else { continue };
            let value = parse_text(kind, &text).map_err(|expected| {
                let error = format!("{variable}: `{text}` is not {expected}");
                Failure::new("configuration", error).exit(Exit::Usage)
            })?;
            self.put(kind, key, with_paths(kind, value, Path::new("")), variable);
        }
        Ok(())
    }

    /// Adds the given flags: the fields of `args` that have the name of a key.
    pub(crate) fn add_flags(&mut self, args: &impl Serialize) {
        let flags = Table::try_from(args).expect("flags are strings, numbers and lists of them");
        for (kind, key) in self.layout.keys() {
            let value = match flags.get(key) {
                None | Some(Value::Boolean(false)) => continue,
                Some(Value::Array(list)) if list.is_empty() => continue,
                Some(Value::Array(pairs)) if kind == Kind::Map => {
                    let pair = |pair: &Value| Some((pair[0].as_str()?.to_owned(), pair[1].clone()));
                    Value::Table(pairs.iter().filter_map(pair).collect())
                }
                Some(value) => value.clone(),
            };
            let flag = format!("--{}", key.replace('_', "-"));
            self.put(kind, key, with_paths(kind, value, Path::new("")), flag);
        }
    }

    pub(crate) fn add_default(&mut self, key: &'static str, value: Value) {
        self.values.entry(key).or_insert((value, "the default".to_owned()));
    }

    fn put(&mut self, kind: Kind, key: &'static str, value: Value, source: Source) {
        let merged = match (self.values.remove(key), value) {
            (Some((Value::Table(mut below), _)), Value::Table(above))
                if matches!(kind, Kind::Map | Kind::NumberMap | Kind::PathMap) =>
            {
                below.extend(above);
                Value::Table(below)
            }
            (_, value) => value,
        };
        self.values.insert(key, (merged, source));
    }

    /// Every key that has a value, the value, and where it comes from.
    pub(crate) fn settings(&self) -> Vec<Setting> {
        let all = self.values.iter();
        all.map(|(key, (value, from))| Setting { key, value: shown(value), from: from.clone() })
            .collect()
    }

    pub(crate) fn finish<T: DeserializeOwned>(self) -> Result<T, Failure> {
        for (name, (value, source)) in &self.values {
            let valid = self.layout.required.iter();
            let mut sample: Table =
                valid.map(|(key, text)| ((*key).to_owned(), Value::from(*text))).collect();
            sample.insert((*name).to_owned(), value.clone());
            if let Err(error) = sample.try_into::<T>() {
                let error = error.message().trim().to_owned();
                return Err(Failure::new("configuration", format!("{source}: {name}: {error}"))
                    .exit(Exit::Usage));
            }
        }
        let table: Table =
            self.values.into_iter().map(|(name, (value, _))| (name.to_owned(), value)).collect();
        for (name, _) in self.layout.required {
            if !table.contains_key(*name) {
                let variable = format!("{}{}", self.layout.env_prefix, name.to_uppercase());
                let flag = name.replace('_', "-");
                let error = format!("missing configuration key `{name}`");
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

/// A value without the secrets that addresses may have.
fn shown(value: &Value) -> Value {
    match value {
        Value::String(text) if text.contains("://") => without_secrets(text).into(),
        Value::Array(values) => Value::Array(values.iter().map(shown).collect()),
        other => other.clone(),
    }
}

/// Reads a small text file.
pub(crate) fn read_file(file: &Path) -> Result<String, Failure> {
    let length = fs::metadata(file).map_err(|error| unreadable(file, error))?.len();
    if length > FILE_BYTES_MAX {
        let name = file.display();
        let error = format!("{name} is too long: {length} bytes, at most {FILE_BYTES_MAX}");
        return Err(Failure::new("file", error).exit(Exit::Usage));
    }
    fs::read_to_string(file).map_err(|error| unreadable(file, error))
}

fn unreadable(path: &Path, source: io::Error) -> Failure {
    let error = FileError { doing: "read", path: path.to_owned(), source };
    Failure::of("file", &error).exit(Exit::Usage)
}

fn drop_ins(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let failed = |error| unreadable(folder, error);
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
        let (name, count) = (folder.display(), files.len());
        let error = format!("{name} has {count} drop-ins, at most {DROP_INS_MAX} are allowed");
        return Err(Failure::new("file", error).exit(Exit::Usage));
    }
    files.sort();
    Ok(files)
}

/// The absolute path; unchanged if there is no current directory.
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
                    Value::Array(mut words) => {
                        if let Some(Value::String(program)) = words.first() {
                            words[0] = anchor(program);
                        }
                        (name, Value::Array(words))
                    }
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
            map_value(text, |text| Some(text.into())).ok_or("of the form `name=text,name=text`")
        }
        Kind::NumberMap => map_value(text, |text| text.parse().ok().map(Value::Integer))
            .ok_or("of the form `name=number,name=number`"),
    }
}

fn list_value<'t>(texts: impl Iterator<Item = &'t str>) -> Value {
    Value::Array(texts.map(|text| Value::String(text.to_owned())).collect())
}

fn map_value(text: &str, value: impl Fn(&str) -> Option<Value>) -> Option<Value> {
    let pair = |pair: &str| {
        let (name, text) = pair.split_once('=')?;
        Some((name.trim().to_owned(), value(text.trim())?))
    };
    text.split(',').map(pair).collect::<Option<_>>().map(Value::Table)
}

pub(crate) fn parse_pair(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').filter(|(name, _)| !name.is_empty());
    pair.map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| format!("`{text}` is not of the form name=text"))
}

#[cfg(test)]
#[path = "layers_test.rs"]
mod layers_test;
