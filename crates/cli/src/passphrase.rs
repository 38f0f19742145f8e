//! Passphrases of signing keys: from a file that the environment names, else from the terminal.

use std::env;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};

use cohort_base::OnPath as _;
use console::Term;

use crate::failure::{Failure, OrFail as _};

/// Names the file whose first line is the passphrase.
const VARIABLE: &str = "COHORT_KEY_PASSPHRASE_FILE";

/// Longest passphrase, in bytes.
const BYTES_MAX: u64 = 1024;

/// The passphrase of a key file; `None` without a file and a terminal.
pub(crate) fn ask(path: &Path) -> io::Result<Option<String>> {
    if let Some(file) = named() {
        return read(&file).map(Some);
    }
    let terminal = Term::stderr();
    if !terminal.is_term() {
        return Ok(None);
    }
    terminal.write_str(&format!("passphrase of {}: ", path.display()))?;
    terminal.read_secure_line().map(Some)
}

/// A passphrase for new keys: the same twice, or from `file`, or from the environment's.
pub(crate) fn choose(file: Option<&Path>) -> Result<String, Failure> {
    let passphrase = match file.map(Path::to_owned).or_else(named) {
        Some(file) => read(&file).on_path("read", &file).or_fail("passphrase")?,
        None => choose_at_terminal()?,
    };
    if passphrase.is_empty() {
        return Err(Failure::new("passphrase", "the passphrase is empty"));
    }
    Ok(passphrase)
}

fn choose_at_terminal() -> Result<String, Failure> {
    let terminal = Term::stderr();
    if !terminal.is_term() {
        return Err(Failure::new("passphrase", "there is no terminal to ask for a passphrase")
            .hint(format!("name the file with it: export {VARIABLE}=FILE")));
    }
    let line = |prompt: &str| {
        terminal.write_str(prompt).and_then(|()| terminal.read_secure_line()).or_fail("passphrase")
    };
    let first = line("new passphrase: ")?;
    if line("again: ")? != first {
        return Err(Failure::new("passphrase", "the two differ; nothing changed"));
    }
    Ok(first)
}

fn named() -> Option<PathBuf> {
    env::var_os(VARIABLE).filter(|file| !file.is_empty()).map(PathBuf::from)
}

fn read(file: &Path) -> io::Result<String> {
    let mut line = String::new();
    BufReader::new(File::open(file)?.take(BYTES_MAX)).read_line(&mut line)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}
