//! What a server is doing: its step, and how far a download is.

use cohort_core::doing::{BytesFrom, Doing, Download, Failing};

use crate::figures::{bits, brief, bytes};
use crate::words::line;

/// A leader that has not answered for this long is mentioned, in milliseconds. 6 s: it answers
/// every four.
const LEADER_SILENT_MS: u64 = 6_000;

/// What a server says beside its step; empty when the step says it all.
#[must_use]
pub fn detail(doing: &Doing) -> String {
    line(&match doing {
        Doing::Step { .. } => String::new(),
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
            // What matters most first: it may be cut off.
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
mod doing_test {
    use super::*;

    fn said(from: BytesFrom, leader_silent_ms: u64) -> String {
        detail(&Doing::Download(Download::Running {
            held_bytes: 3 << 20,
            total_bytes: 8 << 20,
            from,
            refused: vec!["s7".to_owned()],
            leader_silent_ms,
            limit_bytes_per_second: Some(1_250_000),
        }))
    }

    #[test]
    fn nobody_steers_the_terminal_of_who_reads_it() {
        let error = "no\n    -> rm -rf /\u{1b}[2J\u{202e}".to_owned();
        let said = detail(&Doing::Download(Download::Failed { tries: 1, error }));
        assert!(!said.contains(['\n', '\u{1b}', '\u{202e}']), "{said}");
    }

    #[test]
    fn a_download_names_its_figures_source_and_obstacles() {
        let text = said(BytesFrom::Servers { first: "s3".to_owned(), more: 2 }, 0);
        for part in ["3.0 MiB", "8.0 MiB", "s3", "s7", "10.0 Mbit/s"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!said(BytesFrom::LeaderAwaited, 4_000).contains("4s"));
        assert!(said(BytesFrom::LeaderAwaited, 12_000).contains("12s"));
        let failed = Failing { source: "http://m1/".to_owned(), error: "is busy".to_owned() };
        let text = said(BytesFrom::MirrorAwaited { failed: Some(failed) }, 0);
        assert!(text.contains("http://m1/ is busy"), "{text}");
    }
}
