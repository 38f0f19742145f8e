//! Imports between the modules of a crate, and their cycles.

use std::collections::{BTreeMap, BTreeSet};

use syn::visit::{self, Visit};

use super::functions::for_tests;

type Path = Vec<String>;

/// A module's file, and the names in its `use` items.
#[derive(Debug)]
pub(crate) struct Module {
    /// Path below the crate: empty for `lib.rs`.
    at: Path,
    /// Paths from the crate's root, each with its local name.
    uses: Vec<(Path, String)>,
}

/// Reads a module from its file, `src/…` of a crate.
pub(crate) fn module(below_src: &str, file: &syn::File) -> Module {
    let at: Path = below_src
        .trim_end_matches(".rs")
        .split('/')
        .filter(|part| !matches!(*part, "lib" | "main" | "mod"))
        .map(str::to_owned)
        .collect();
    let mut uses = Uses { at: at.clone(), found: Vec::new() };
    uses.visit_file(file);
    Module { at, uses: uses.found }
}

struct Uses {
    at: Path,
    found: Vec<(Path, String)>,
}

impl Uses {
    fn tree(&mut self, prefix: &[String], tree: &syn::UseTree) {
        let below = |name: &syn::Ident| [prefix, &[name.to_string()]].concat();
        match tree {
            syn::UseTree::Path(path) => self.tree(&below(&path.ident), &path.tree),
            syn::UseTree::Group(group) => {
                group.items.iter().for_each(|item| self.tree(prefix, item));
            }
            syn::UseTree::Glob(_) => self.add(prefix.to_vec(), String::new()),
            syn::UseTree::Name(name) => self.add(below(&name.ident), name.ident.to_string()),
            syn::UseTree::Rename(name) => self.add(below(&name.ident), name.rename.to_string()),
        }
    }

    /// Records a path that may be within this crate, relative to its root.
    fn add(&mut self, mut path: Path, name: String) {
        let mut from = self.at.clone();
        match path.first().map(String::as_str) {
            Some("crate") => from.clear(),
            Some("super") => {}
            Some("self") => {
                path[0] = from.pop().unwrap_or_default();
                path.retain(|part| !part.is_empty());
            }
            // A child module, or another crate: which one shows when all are known.
            Some(_) => path.insert(0, String::new()),
            None => return,
        }
        while path.first().is_some_and(|part| part == "super") {
            path.remove(0);
            from.pop();
        }
        path.retain(|part| part != "crate" && part != "self" && !part.is_empty());
        from.extend(path);
        self.found.push((from, name));
    }
}

impl<'a> Visit<'a> for Uses {
    fn visit_item_mod(&mut self, item: &'a syn::ItemMod) {
        if !for_tests(&item.attrs) && item.content.is_some() {
            self.at.push(item.ident.to_string());
            visit::visit_item_mod(self, item);
            self.at.pop();
        }
    }

    fn visit_item_use(&mut self, item: &'a syn::ItemUse) {
        if !for_tests(&item.attrs) {
            self.tree(&[], &item.tree);
        }
    }
}

/// Groups of modules of one crate that form an import cycle, each sorted by name.
pub(crate) fn circles(modules: &[Module]) -> Vec<Vec<String>> {
    let by_path: BTreeMap<&[String], &Module> =
        modules.iter().map(|module| (module.at.as_slice(), module)).collect();
    let arrows: BTreeMap<&[String], BTreeSet<&[String]>> = modules
        .iter()
        .map(|module| {
            let to = module.uses.iter().filter_map(|(path, _)| home(&by_path, path, 8));
            (module.at.as_slice(), to.filter(|to| *to != module.at.as_slice()).collect())
        })
        .collect();
    let reach: BTreeMap<&[String], BTreeSet<&[String]>> =
        arrows.keys().map(|from| (*from, reached(&arrows, from))).collect();
    let mut found: BTreeSet<Vec<String>> = BTreeSet::new();
    for (from, to) in &reach {
        let circle: Vec<String> =
            to.iter().filter(|other| reach[**other].contains(from)).map(|at| name(at)).collect();
        if circle.len() > 1 {
            found.insert(circle);
        }
    }
    found.into_iter().collect()
}

fn name(at: &[String]) -> String {
    if at.is_empty() { "lib".to_owned() } else { at.join("::") }
}

/// The module in which a path's item lives; `None` for other crates. Re-exports (`pub use`) are
/// followed, at most `hops` times.
fn home<'a>(
    all: &BTreeMap<&'a [String], &'a Module>,
    path: &[String],
    hops: u32,
) -> Option<&'a [String]> {
    let known = (0..=path.len()).rev().find(|length| all.contains_key(&path[..*length]))?;
    let (at, module) = all.get_key_value(&path[..known])?;
    let Some(item) = path.get(known) else { return Some(at) };
    let passed_on = module.uses.iter().find(|(target, name)| name == item && target != path);
    match passed_on {
        Some((target, _)) if hops > 0 => {
            home(all, &[target, &path[known + 1..]].concat(), hops - 1)
        }
        _ => Some(at),
    }
}

fn reached<'a>(
    arrows: &BTreeMap<&'a [String], BTreeSet<&'a [String]>>,
    from: &&'a [String],
) -> BTreeSet<&'a [String]> {
    let mut seen = BTreeSet::new();
    let mut open: Vec<&[String]> = arrows[from].iter().copied().collect();
    while let Some(next) = open.pop() {
        if seen.insert(next) {
            open.extend(arrows.get(next).into_iter().flatten());
        }
    }
    seen
}

#[cfg(test)]
#[path = "imports_test.rs"]
mod imports_test;
