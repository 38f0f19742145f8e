use super::{figures, percentile};
use crate::tidy::tree::File;

#[test]
fn percentiles_of_nothing_are_nothing() {
    assert_eq!(percentile(&[], 50), 0);
    assert_eq!(percentile(&[3, 1, 2], 50), 2);
    assert_eq!(percentile(&[3, 1, 2], 100), 3);
}

#[test]
fn production_and_tests_are_counted_apart() {
    let files = [
        File::of("crates/a/Cargo.toml", "[dependencies]\ncohort-b = {}\n"),
        File::of("crates/a/src/lib.rs", "mod x;\nuse x::X;\npub fn long() {\n}\n"),
        File::of("crates/a/src/x.rs", "use crate::long;\npub struct X;\n/// Why.\npub fn y() {}\n"),
        File::of("crates/a/src/x_test.rs", "fn t() {}\n"),
    ];
    let text = figures(&files).expect("Rust");
    let line = text.lines().find(|line| line.starts_with("a ")).expect("a line for the crate");
    let words: Vec<&str> = line.split_whitespace().collect();
    assert_eq!(words[..3], ["a", "8", "1"], "{text}");
    assert_eq!(words[4..8], ["2", "4", "4", "4"], "{text}");
    assert!(text.contains("arrows between crates: 1\n"), "{text}");
    assert!(text.contains("circles of imports: 1, with 2 files\n  a: lib, x\n"), "{text}");
    assert!(text.contains("doc comments of one to three words: 1\n"), "{text}");
}
