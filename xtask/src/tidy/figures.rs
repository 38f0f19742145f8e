//! Figures about the code, to compare before and after a change.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use anyhow::Result;

use super::arrows;
use super::functions::{functions, parse};
use super::imports::{Module, circles, module};
use super::tree::File;

/// Functions longer than this are counted; the second figure is close to the limit of the lint
/// `too_many_lines`, which does not count comments.
const LONG: [usize; 2] = [60, 100];

const HEADING: &str = "\
crate        production   test   t:c  files  p50  p90  max  functions  p50  p90  max  >60 >100
";

/// The figures of one crate.
#[derive(Debug, Default)]
struct Figures {
    production_lines: usize,
    test_lines: usize,
    file_lines: Vec<usize>,
    function_lines: Vec<usize>,
    modules: Vec<Module>,
}

impl Figures {
    fn add(&mut self, other: &Figures) {
        self.production_lines += other.production_lines;
        self.test_lines += other.test_lines;
        self.file_lines.extend(&other.file_lines);
        self.function_lines.extend(&other.function_lines);
    }
}

/// The value below which `percent` per cent of all values lie; 0 if there are none.
fn percentile(values: &[usize], percent: usize) -> usize {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    sorted.len().checked_sub(1).map_or(0, |last| sorted[last * percent / 100])
}

/// All figures, as a human-readable table.
pub(crate) fn figures(files: &[File]) -> Result<String> {
    let mut crates: BTreeMap<String, Figures> = BTreeMap::new();
    for file in files.iter().filter(|file| file.is_rust()) {
        let Some(home) = file.home() else { continue };
        let of = crates.entry(home).or_default();
        let lines = file.text.lines().count();
        if file.is_test() {
            of.test_lines += lines;
            continue;
        }
        of.production_lines += lines;
        of.file_lines.push(lines);
        let parsed = parse(&file.path, &file.text)?;
        of.function_lines.extend(functions(&parsed));
        if let Some((_, below)) = file.path.split_once("/src/") {
            of.modules.push(module(below, &parsed));
        }
    }
    let mut out = HEADING.to_owned();
    let mut sum = Figures::default();
    for (name, of) in &crates {
        line(&mut out, name, of);
        sum.add(of);
    }
    line(&mut out, "all", &sum);
    let arrows = arrows::actual(files)?;
    let _ = writeln!(
        out,
        "\narrows between crates: {}",
        arrows.values().map(BTreeSet::len).sum::<usize>()
    );
    let mut all = Vec::new();
    for (name, of) in &crates {
        all.extend(circles(&of.modules).into_iter().map(|circle| (name, circle)));
    }
    let in_circles: usize = all.iter().map(|(_, circle)| circle.len()).sum();
    let _ = writeln!(out, "circles of imports: {}, with {in_circles} files", all.len());
    for (name, circle) in all {
        let _ = writeln!(out, "  {name}: {}", circle.join(", "));
    }
    let production = files.iter().filter(|file| file.is_production());
    let short: usize = production.map(|file| short_docs(&file.text)).sum();
    let _ = writeln!(out, "doc comments of one to three words: {short}");
    Ok(out)
}

/// Doc comments of one to three words, which rarely say more than the name.
fn short_docs(text: &str) -> usize {
    let words = |doc: &str| doc.split_whitespace().count();
    let docs = |line: &str| line.trim_start().strip_prefix("///").map(words);
    let lines: Vec<Option<usize>> = text.lines().map(docs).collect();
    lines.windows(3).filter(|lines| matches!(lines, [None, Some(1..=3), None])).count()
}

fn line(out: &mut String, name: &str, of: &Figures) {
    let Figures { production_lines, test_lines, file_lines, function_lines, .. } = of;
    let ratio = *test_lines as f64 / (*production_lines).max(1) as f64;
    let over = |most: usize| function_lines.iter().filter(|lines| **lines > most).count();
    let _ = writeln!(
        out,
        "{name:<12} {production_lines:>10} {test_lines:>6} {ratio:>5.2}  {:>5} {:>4} {:>4} {:>4}  \
         {:>9} {:>4} {:>4} {:>4} {:>4} {:>4}",
        file_lines.len(),
        percentile(file_lines, 50),
        percentile(file_lines, 90),
        percentile(file_lines, 100),
        function_lines.len(),
        percentile(function_lines, 50),
        percentile(function_lines, 90),
        percentile(function_lines, 100),
        over(LONG[0]),
        over(LONG[1]),
    );
}

#[cfg(test)]
#[path = "figures_test.rs"]
mod figures_test;
