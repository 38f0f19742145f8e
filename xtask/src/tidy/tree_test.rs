use super::{File, Tree};

#[test]
fn a_file_knows_its_crate_and_whether_it_is_production() {
    let home = |path: &str| File::of(path, "").home();
    assert_eq!(home("crates/core/src/plan.rs").as_deref(), Some("core"));
    assert_eq!(home("examples/web/src/main.rs").as_deref(), Some("example-web"));
    assert_eq!(home("xtask/src/main.rs").as_deref(), Some("xtask"));
    assert_eq!(home("docs/voice.md"), None);
    let production = |path: &str| File::of(path, "").is_production();
    assert!(production("crates/core/src/plan.rs"));
    assert!(!production("crates/core/src/plan_test.rs"));
    assert!(!production("crates/core/tests/replay.rs"));
    assert!(!production("crates/distribute/src/testing.rs"));
    assert!(!production("docs/voice.md"));
}

#[test]
fn sources_and_documents_are_read_and_builds_are_not() {
    let root = std::env::temp_dir().join(format!("cohort-tidy-test-{}", std::process::id()));
    for (path, text) in [("b/x.rs", "1"), ("a.md", "2"), ("c.txt", "3"), ("target/y.rs", "4")] {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        std::fs::write(path, text).expect("a file");
    }
    let tree = Tree::read(&root).expect("readable");
    std::fs::remove_dir_all(&root).expect("removed");
    let paths: Vec<&str> = tree.files.iter().map(|file| file.path.as_str()).collect();
    assert_eq!(paths, ["a.md", "b/x.rs"]);
    assert_eq!(tree.paths.iter().collect::<Vec<_>>(), ["a.md", "b/x.rs", "c.txt"]);
}
