//! Functions and their lengths.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use syn::visit::{self, Visit};

use super::tree::File;
use super::{Complaint, complaint};

/// Longer functions have a reason in [`LONG`].
const LINES: usize = 100;

/// Long functions: file, name, and why it is better in one piece.
pub(crate) const LONG: &[(&str, &str, &str)] = &[];

/// A function with a body; its length counts from `fn` to the closing brace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Function {
    pub name: String,
    /// Of `fn`, from 1.
    pub line: usize,
    pub lines: usize,
}

/// All functions of a file but those of `#[cfg(test)]`.
pub(crate) fn functions(file: &syn::File) -> Vec<Function> {
    let mut found = Found(Vec::new());
    found.visit_file(file);
    found.0
}

/// Functions that are too long and have no reason, and reasons whose function is not long.
pub(crate) fn check(files: &[File], long: &[(&str, &str, &str)]) -> Result<Vec<Complaint>> {
    let mut complaints = Vec::new();
    let mut excused = BTreeSet::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        // Most files are shorter than a long function.
        if file.text.lines().count() <= LINES {
            continue;
        }
        let parsed = parse(&file.path, &file.text)?;
        for Function { name, line, lines } in functions(&parsed) {
            if lines <= LINES {
                continue;
            }
            if long.iter().any(|(path, function, _)| *path == file.path && *function == name) {
                excused.insert((file.path.as_str(), name));
                continue;
            }
            let what = format!("`{name}` has {lines} lines, at most {LINES}: split it");
            complaints.push(complaint(file.path.clone(), line, what));
        }
    }
    for (path, function, _) in long {
        if !excused.contains(&(*path, (*function).to_owned())) {
            let what = format!("`{function}` is not long any more: remove it in functions.rs");
            complaints.push(complaint((*path).to_owned(), 1, what));
        }
    }
    Ok(complaints)
}

/// Parses a file of Rust.
pub(crate) fn parse(path: &str, text: &str) -> Result<syn::File> {
    syn::parse_file(text).with_context(|| format!("{path} is no Rust"))
}

/// Whether an item exists in tests only.
pub(crate) fn for_tests(attrs: &[syn::Attribute]) -> bool {
    attrs.iter().any(|attr| {
        let test = |path: syn::Path| path.is_ident("test");
        attr.path().is_ident("cfg") && attr.parse_args::<syn::Path>().is_ok_and(test)
    })
}

struct Found(Vec<Function>);

impl Found {
    fn add(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let line = signature.fn_token.span.start().line;
        let lines = block.brace_token.span.close().end().line - line + 1;
        self.0.push(Function { name: signature.ident.to_string(), line, lines });
    }
}

impl<'a> Visit<'a> for Found {
    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if !for_tests(&item.attrs) {
            visit::visit_item_mod(self, item);
        }
    }

    fn visit_item_fn(&mut self, item: &'a syn::ItemFn) {
        self.add(&item.sig, &item.block);
        visit::visit_item_fn(self, item);
    }

    fn visit_impl_item_fn(&mut self, item: &'a syn::ImplItemFn) {
        self.add(&item.sig, &item.block);
        visit::visit_impl_item_fn(self, item);
    }

    fn visit_trait_item_fn(&mut self, item: &'a syn::TraitItemFn) {
        if let Some(block) = &item.default {
            self.add(&item.sig, block);
        }
        visit::visit_trait_item_fn(self, item);
    }
}

#[cfg(test)]
#[path = "functions_test.rs"]
mod functions_test;
