//! Plays every `scenarios/*.txt`; `UPDATE=1` writes what came out of it.

use std::fs;
use std::path::{Path, PathBuf};

use cohort_simulate::fleet::script::Script;

/// A script that nobody reads to the end proves nothing to anybody.
const LINES_MAX: usize = 150;

fn scripts() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios");
    let mut paths: Vec<PathBuf> = fs::read_dir(folder)
        .expect("the folder of scenarios")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    paths.sort();
    paths
}

#[test]
fn scenarios_come_out_as_written() {
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    for path in scripts() {
        let name = path.file_name().expect("a file").to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).expect("a readable script");
        let (played, _) = Script::play(&text);
        if played != text {
            if update {
                fs::write(&path, &played).expect("a writable script");
                println!("{name}: rewritten");
            } else {
                println!("=== {name}, as it came out:\n{played}");
                wrong.push(name);
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?} came out otherwise; UPDATE=1 rewrites them");
}

#[test]
fn scenarios_are_short_and_say_what_they_prove() {
    for path in scripts() {
        let text = fs::read_to_string(&path).expect("a readable script");
        let name = path.display();
        assert!(text.starts_with("# "), "{name} does not begin with what it proves");
        let lines = text.lines().count();
        assert!(lines <= LINES_MAX, "{name} has {lines} lines, at most {LINES_MAX}");
    }
}
