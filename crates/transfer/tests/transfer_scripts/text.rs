//! Layouts, runs and guidance as text.

use std::collections::BTreeMap;

use cohort_core::ids::ServerId;
use cohort_transfer::tracker::{Layout, Member};
use cohort_transfer::{Guidance, UnitRun, UnitSet};

/// `0..64 128..192`, or `nothing`.
pub(crate) fn runs(runs: &[UnitRun]) -> String {
    if runs.is_empty() {
        return "nothing".to_owned();
    }
    let runs = runs.iter().map(|run| format!("{}..{}", run.first, run.end()));
    runs.collect::<Vec<_>>().join(" ")
}

/// `0..64`, or `all` of `count` units.
pub(crate) fn units(text: &str, count: u32) -> Result<UnitSet, String> {
    let mut set = UnitSet::empty(count);
    match text {
        "all" => return Ok(UnitSet::full(count)),
        "nothing" => return Ok(set),
        _ => {}
    }
    for run in text.split(',') {
        let bad = || format!("`{run}` is no run of units");
        let (first, end) = run.split_once("..").ok_or_else(bad)?;
        let (first, end): (u32, u32) =
            (first.parse().map_err(|_| bad())?, end.parse().map_err(|_| bad())?);
        set.insert_run(UnitRun { first, count: end.checked_sub(first).ok_or_else(bad)? });
    }
    Ok(set)
}

/// Heads, leases, and which server sends to which: a chain in one line, branches below.
pub(crate) fn layout(layout: &Layout, members: &BTreeMap<ServerId, Member>) -> Vec<String> {
    let mut lines = Vec::new();
    for head in &layout.heads {
        let lease = layout.leases.get(head).map_or_else(Vec::new, |lease| lease.runs(9));
        lines.push(format!("head {head} leases {}", runs(&lease)));
    }
    if !layout.root_feeds.is_empty() {
        lines.push(format!("{} is fed by {}", layout.heads[0], names(&layout.root_feeds)));
    }
    for id in members.keys().filter(|id| !layout.parents.contains_key(*id)) {
        walk(layout, id, id.to_string(), 0, &mut lines);
    }
    lines
}

fn walk(
    layout: &Layout,
    from: &ServerId,
    mut line: String,
    indent: usize,
    lines: &mut Vec<String>,
) {
    let mut at = from.clone();
    loop {
        let mut children = layout.parents.iter().filter(|(_, parent)| **parent == at);
        let all: Vec<&ServerId> = children.by_ref().map(|(child, _)| child).collect();
        if let [only] = all[..] {
            line = format!("{line} > {only}");
            at = only.clone();
            continue;
        }
        lines.push(format!("{}{line}", " ".repeat(indent)));
        for child in all {
            walk(layout, child, format!("{at} > {child}"), indent + 2, lines);
        }
        return;
    }
}

/// A server's guidance.
pub(crate) fn guidance(guidance: &Guidance) -> String {
    let mut parts = Vec::new();
    let of = |sources: &[cohort_core::orders::Source]| {
        names(&sources.iter().map(|source| source.server.clone()).collect::<Vec<_>>())
    };
    if !guidance.feeds.is_empty() {
        parts.push(format!("from {}", of(&guidance.feeds)));
    }
    // It has already taken the first of them when it gets this.
    if let Some(last) = guidance.lease.last() {
        parts.push(format!("leases up to {}", last.end()));
    }
    if guidance.heir {
        parts.push("is the heir".to_owned());
    }
    if parts.is_empty() { "nothing".to_owned() } else { parts.join(", ") }
}

fn names(all: &[ServerId]) -> String {
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
