//! Functions and their lengths.

use anyhow::{Context as _, Result};
use syn::visit::{self, Visit};

/// The lengths in lines of all functions of a file, from `fn` to the closing brace, except those
/// under `#[cfg(test)]`.
pub(crate) fn functions(file: &syn::File) -> Vec<usize> {
    let mut found = Found(Vec::new());
    found.visit_file(file);
    found.0
}

pub(crate) fn parse(path: &str, text: &str) -> Result<syn::File> {
    syn::parse_file(text).with_context(|| format!("{path} is no Rust"))
}

/// Whether an item is only compiled for tests.
pub(crate) fn for_tests(attrs: &[syn::Attribute]) -> bool {
    attrs.iter().any(|attr| {
        let test = |path: syn::Path| path.is_ident("test");
        attr.path().is_ident("cfg") && attr.parse_args::<syn::Path>().is_ok_and(test)
    })
}

struct Found(Vec<usize>);

impl Found {
    fn add(&mut self, signature: &syn::Signature, block: &syn::Block) {
        let line = signature.fn_token.span.start().line;
        self.0.push(block.brace_token.span.close().end().line - line + 1);
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
