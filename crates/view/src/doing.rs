//! What a server is doing: its step, and the progress of a download.

use cohort_core::doing::{BytesFrom, Doing, Download, Failing};

use crate::figures::{bits, brief, bytes};
use crate::words::line;

/// A leader that has not responded for this long is mentioned, in milliseconds. 6 s: it responds
/// every four.
const LEADER_SILENT_MS: u64 = 6_000;

/// Details in addition to the step; empty if the step says it all.
#[must_use]
pub fn detail(doing: &Doing) -> String {
    line(&match doing {
        Doing::Step { .. } => String::new(),
        Doing::Checking { saw, left_ms } => format!("{saw}; fails in {}", brief(*left_ms)),
        Doing::Confirming => "passed, waiting for the group to confirm".into(),
        Doing::Download(Download::Queued) => "queued".into(),
        Doing::Download(Download::Complete) => "complete".into(),
        Doing::Download(Download::Failed { tries, error }) => format!("try {tries}: {error}"),
        Doing::Download(Download::Running {
            held_bytes,
            total_bytes,
            from,
            refused,
            leader_silent_ms,
            limit_bytes_per_second,
        }) => {
            // Most important first: the end may be truncated.
            let mut parts = Vec::new();
            if *total_bytes > 0 {
                parts.push(format!("{} of {}", bytes(*held_bytes), bytes(*total_bytes)));
            }
            if *total_bytes == 0 || held_bytes < total_bytes {
                parts.push(source(from, *leader_silent_ms));
            }
            if !refused.is_empty() {
                parts.push(format!("refusing {}: wrong bytes", refused.join(", ")));
            }
            if let Some(limit) = limit_bytes_per_second {
                parts.push(format!("download_limit {}", bits(*limit)));
            }
            parts.join("; ")
        }
    })
}

fn source(from: &BytesFrom, leader_silent_ms: u64) -> String {
    let lost = (leader_silent_ms >= LEADER_SILENT_MS)
        .then(|| format!("no leader for {}", brief(leader_silent_ms)));
    let or_lost = |awaited: String| match &lost {
        Some(lost) => format!("{awaited}, {lost}"),
        None => awaited,
    };
    let says = |failing: &Failing| format!("{} {}", failing.source, failing.error);
    match from {
        BytesFrom::Mirror { mirror } => format!("from mirror {mirror}"),
        BytesFrom::Servers { first, more: 0 } => format!("from {first}"),
        BytesFrom::Servers { first, more } => format!("from {first} and {more} more"),
        BytesFrom::MirrorAwaited { failed: None } => "contacting a mirror".into(),
        BytesFrom::MirrorAwaited { failed: Some(failed) } => {
            format!("waiting for a mirror: {}", says(failed))
        }
        BytesFrom::ServerAwaited { server, error: Some(error) } => {
            or_lost(format!("waiting for {server} ({error})"))
        }
        BytesFrom::ServerAwaited { server, error: None } => {
            or_lost(format!("waiting for {server}"))
        }
        BytesFrom::LeaderAwaited => or_lost("waiting for the leader to name a source".into()),
        BytesFrom::SourcesAwaited { failed } => {
            let failed: Vec<String> = failed.iter().map(says).collect();
            format!("waiting for {}", failed.join(", "))
        }
        BytesFrom::Nowhere => "no mirror is configured, and no server holds it".into(),
    }
}

#[cfg(test)]
#[path = "doing_test.rs"]
mod doing_test;
