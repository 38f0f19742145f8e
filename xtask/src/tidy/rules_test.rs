use super::{BANS, check};
use crate::tidy::tree::File;

fn refused(path: &str, text: &str) -> Vec<(usize, String)> {
    let files = [File::of(path, text)];
    let found = BANS.iter().flat_map(|ban| check(ban, &files).expect("a pattern"));
    found.map(|complaint| (complaint.line, complaint.what)).collect()
}

#[test]
fn each_ban_finds_what_it_is_for_and_names_the_replacement() {
    let cases = [
        ("while let Some(inner) = cause.source() {", "cohort_base::chain"),
        (".map_err(|error| Failed(error.to_string()))", "cohort_base::chain"),
        ("none(error.without_url().to_string())", "#[source]"),
        ("file.sync_all()?;", "cohort_base::durable"),
        ("let stat = rustix::fs::statvfs(path)?;", "cohort_base::disk"),
        ("match file.try_lock() { Err(TryLockError::WouldBlock) => {} }", "cohort_base::disk"),
        ("use std::sync::Mutex;", "parking_lot"),
        ("use std::sync::{Arc, Mutex};", "parking_lot"),
        (".unwrap_or_else(PoisonError::into_inner)", "parking_lot"),
        ("writeln!(out, \"# TYPE {name} counter\")", "prometheus_client"),
        ("let client = reqwest::Client::new();", "mirror client"),
        ("u8::from_str_radix(&text[at..at + 2], 16)", "hex::decode"),
        ("write!(f, \"{byte:02x}\")", "hex::encode"),
        ("ExponentialBuilder::default()", "cohort_base::retry"),
        ("fn a(&self) -> watch::Receiver<u8> {\n    self.a.clone()", "`subscribe`"),
        ("pub async fn ask() {", "doc comment"),
        ("#[must_use]\npub enum Question {", "doc comment"),
        ("//! See https://docs.rs/serde.", "name the crate"),
    ];
    for (text, instead) in cases {
        let found = refused("crates/hub/src/a.rs", &format!("fn a() {{\n{text}\n}}\n"));
        assert_eq!(found.len(), 1, "{text}: {found:?}");
        assert_eq!(found[0].0, 1 + text.lines().count(), "{text}");
        assert!(found[0].1.contains(instead), "{text}: {found:?}");
    }
}

#[test]
fn the_home_of_a_mechanism_may_have_it_and_tests_may_have_some() {
    assert_eq!(refused("crates/base/src/durable.rs", "file.sync_all()?;"), []);
    assert_eq!(refused("crates/store/src/log_test.rs", "file.sync_all()?;"), []);
    assert_eq!(refused("crates/hub/src/a.rs", "use parking_lot::Mutex;\nkey.source()"), []);
    let documented = "/// Why.\n#[must_use]\npub fn why() {}\n\npub mod b;\npub use c::D;\n";
    assert_eq!(refused("crates/hub/src/a.rs", documented), []);
    assert_eq!(refused("docs/design/a.md", "from crates.io").len(), 1, "documents as well");
}
