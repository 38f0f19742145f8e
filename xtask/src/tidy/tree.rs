//! The repository's files as text: the input of every check.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result};

/// Directories that contain no sources.
const SKIPPED: &[&str] = &["target", ".git"];

/// Extensions of the files that are read.
const READ: &[&str] = &["rs", "md", "toml"];

/// One file; its path is relative to the root, with `/`.
#[derive(Debug, Clone)]
pub(crate) struct File {
    pub path: String,
    pub text: String,
}

impl File {
    /// A file made up for a test.
    #[cfg(test)]
    pub(crate) fn of(path: &str, text: &str) -> File {
        File { path: path.to_owned(), text: text.to_owned() }
    }

    /// The crate that it belongs to, by its directory: `core`, `xtask`, `example-web`.
    pub(crate) fn home(&self) -> Option<String> {
        let (first, rest) = self.path.split_once('/')?;
        let inner = rest.split('/').next()?;
        match first {
            "crates" => Some(inner.to_owned()),
            "examples" => Some(format!("example-{inner}")),
            "xtask" => Some(first.to_owned()),
            _ => None,
        }
    }

    pub(crate) fn is_rust(&self) -> bool {
        self.path.ends_with(".rs")
    }

    pub(crate) fn is_prose(&self) -> bool {
        self.path.ends_with(".md")
    }

    /// Whether the file contains tests, or code that only tests use.
    pub(crate) fn is_test(&self) -> bool {
        ["_test.rs", "testing.rs"].iter().any(|end| self.path.ends_with(end))
            || self.path.contains("/tests/")
    }

    /// Whether it is Rust that ends up in a program.
    pub(crate) fn is_production(&self) -> bool {
        self.is_rust() && !self.is_test()
    }

    /// Lines with their numbers, counted from 1.
    pub(crate) fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        (1..).zip(self.text.lines())
    }
}

#[derive(Debug, Default)]
pub(crate) struct Tree {
    /// Sources, documents and manifests, sorted by path.
    pub files: Vec<File>,
    /// Every file, including those not read.
    pub paths: BTreeSet<String>,
}

impl Tree {
    /// Reads everything below `root`.
    pub(crate) fn read(root: &Path) -> Result<Tree> {
        let mut tree = Tree::default();
        tree.add(root, "")?;
        tree.files.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(tree)
    }

    fn add(&mut self, folder: &Path, prefix: &str) -> Result<()> {
        let entries = fs::read_dir(folder).with_context(|| format!("folder {}", folder.display()));
        for entry in entries? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = format!("{prefix}{name}");
            if entry.file_type()?.is_dir() {
                if !SKIPPED.contains(&name.as_str()) {
                    self.add(&entry.path(), &format!("{path}/"))?;
                }
                continue;
            }
            if name.rsplit_once('.').is_some_and(|(_, end)| READ.contains(&end)) {
                let text = fs::read_to_string(entry.path()).with_context(|| path.clone())?;
                self.files.push(File { path: path.clone(), text });
            }
            self.paths.insert(path);
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "tree_test.rs"]
mod tree_test;
