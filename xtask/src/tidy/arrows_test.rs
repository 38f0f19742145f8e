use super::{actual, check, check_page, drawn};
use crate::tidy::tree::File;

fn manifest(path: &str, dependencies: &str) -> File {
    let text = format!("[dependencies]\n{dependencies}\n[dev-dependencies]\ncohort-top = {{}}\n");
    File::of(&format!("crates/{path}/Cargo.toml"), &text)
}

fn three() -> Vec<File> {
    vec![
        manifest("top", "cohort-middle = {}\ncohort-low = {}"),
        manifest("middle", "cohort-low = {}"),
        manifest("low", "serde = {}"),
    ]
}

const ALLOWED: &[(&str, &str)] = &[("top", "middle low"), ("middle", "low"), ("low", "")];

#[test]
fn arrows_equal_the_table() {
    assert_eq!(check(&three(), ALLOWED).expect("manifests"), []);

    let fewer = [("top", "middle"), ("middle", "low"), ("low", "")];
    let complaints = check(&three(), &fewer).expect("manifests");
    assert_eq!(complaints.len(), 1, "{complaints:?}");
    assert!(complaints[0].what.contains("`top` must not depend on `low`"), "{complaints:?}");

    let more = [("top", "middle low"), ("middle", "low"), ("low", "top")];
    let complaints = check(&three(), &more).expect("manifests");
    assert_eq!(complaints.len(), 1, "{complaints:?}");
    assert!(complaints[0].what.contains("no longer depends on `top`"), "{complaints:?}");
}

#[test]
fn some_libraries_are_for_one_crate() {
    let files = [manifest("core", "serde = {}\nrand = {}"), manifest("agent", "raft = {}")];
    let complaints = check(&files, &[]).expect("manifests");
    assert_eq!(complaints.len(), 2, "{complaints:?}");
    assert!(complaints[0].what.contains("only `consensus` may depend on `raft`"));
    assert!(complaints[1].what.contains("`core` must not depend on `rand`"));
}

#[test]
fn the_drawing_shows_direct_arrows_only_and_is_checked() {
    let arrows = actual(&three()).expect("manifests");
    let empty = "# A\n<!-- arrows: drawn by `cargo xtask tidy --fix` -->\n```text\n```\nB\n";
    let page = drawn(empty, &arrows).expect("a place for it");
    assert!(
        page.contains("```text\ntop         ──► middle\nmiddle      ──► low\n```\nB"),
        "{page}"
    );
    assert_eq!(drawn(&page, &arrows).as_deref(), Some(page.as_str()), "drawn again");
    assert_eq!(drawn("no place", &arrows), None);

    let table = "\n| `top` | a |\n| `middle` | b |\n| `low` | c |\n";
    let with = |page: &str| [three(), vec![File::of("ARCHITECTURE.md", page)]].concat();
    assert_eq!(check_page(&with(&format!("{page}{table}"))).expect("manifests"), []);
    assert_eq!(check_page(&with(&format!("{empty}{table}"))).expect("manifests").len(), 1);
    assert_eq!(check_page(&with(&page)).expect("manifests").len(), 3, "no code map");
}
