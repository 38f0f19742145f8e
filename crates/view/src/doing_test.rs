use cohort_core::doing::{BytesFrom, Doing, Download, Failing};

use super::detail;

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
fn a_check_that_does_not_pass_yet_says_what_it_sees_and_until_when() {
    let saw = "http :8080/: connection refused".to_owned();
    let said = detail(&Doing::Checking { saw, left_ms: 240_000 });
    for part in ["http :8080/: connection refused", "4m"] {
        assert!(said.contains(part), "{said}");
    }
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
