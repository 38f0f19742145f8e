//! Plays `scenarios/transfer/*.txt` and compares; `UPDATE=1` writes what actually happened.

#![allow(clippy::disallowed_methods, reason = "the test reads scripts; the crate does no IO")]

mod script;
mod text;

use std::fs;
use std::path::Path;

use script::Script;

/// Most lines of a script; longer ones explain nothing.
const LINES_MAX: usize = 120;

#[test]
fn transfer_scripts_play_as_written() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../scenarios/transfer");
    let mut files: Vec<_> = fs::read_dir(&folder)
        .expect("the folder of scripts")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    assert!(files.len() >= 8, "only {} scripts in {}", files.len(), folder.display());
    let update = std::env::var_os("UPDATE").is_some();
    let mut wrong = Vec::new();
    for path in files {
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        let written = fs::read_to_string(&path).expect("a readable script");
        if !written.starts_with("# ") {
            wrong.push(format!("{name}: does not begin by saying what it proves"));
        }
        if written.lines().count() > LINES_MAX {
            wrong.push(format!("{name}: more than {LINES_MAX} lines"));
        }
        match Script::play(&written) {
            Err(error) => wrong.push(format!("{name}: {error}")),
            Ok(played) if played == written => {}
            Ok(played) if update => fs::write(&path, played).expect("write the script"),
            Ok(played) => {
                let at = played.lines().zip(written.lines()).position(|(a, b)| a != b);
                let at = at.unwrap_or_else(|| played.lines().count().min(written.lines().count()));
                wrong.push(format!(
                    "{name}:{}: is {:?}, was {:?} (UPDATE=1 rewrites)",
                    at + 1,
                    played.lines().nth(at).unwrap_or_default(),
                    written.lines().nth(at).unwrap_or_default(),
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
