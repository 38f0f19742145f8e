//! Measures the saving of a delta: packs two directories as `cohort publish` does (or takes two
//! tarballs), makes the delta from the first to the second, applies it, and prints one line of
//! JSON.
//!
//! ```text
//! cargo run --release -p cohort-artifact --example delta_size -- OLD NEW
//! ```

use std::error::Error;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Instant;

use cohort_artifact::{DeltaInput, DeltaMaker, apply_delta, hash_file, pack_folder};

fn main() -> Result<(), Box<dyn Error>> {
    let paths: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [old, new] = paths.as_slice() else {
        return Err("usage: delta_size OLD NEW (directories or tarballs)".into());
    };
    let scratch = tempfile::tempdir()?;
    let old = artifact(old, &scratch.path().join("old"))?;
    let new = artifact(new, &scratch.path().join("new"))?;
    let whole = hash_file(&new)?;
    let begun = Instant::now();
    let maker = DeltaMaker::new(&new, whole.root(), whole.length(), scratch.path())?
        .ok_or("the new artifact is compressed in a way that servers cannot repeat")?;
    let path = scratch.path().join("delta");
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    let made = maker.delta_from(&old, &file, &|| false)?;
    let make_s = begun.elapsed().as_secs_f64();
    let Some(made) = made else {
        println!("{{\"whole_bytes\": {}, \"delta_bytes\": null}}", whole.length());
        return Ok(());
    };
    let begun = Instant::now();
    let input = DeltaInput {
        base: &old,
        delta: &File::open(&path)?,
        method: maker.method(),
        root: whole.root(),
        length: whole.length(),
        scratch: scratch.path(),
        scratch_bytes_max: u64::MAX,
        stopped: &|| false,
    };
    apply_delta(&input, &mut io::sink())?;
    println!(
        "{{\"whole_bytes\": {}, \"delta_bytes\": {}, \"wan_reduction\": {:.2}, \
         \"make_s\": {make_s:.2}, \"apply_s\": {:.2}, \"method\": \"{}\"}}",
        whole.length(),
        made.length(),
        whole.length() as f64 / made.length() as f64,
        begun.elapsed().as_secs_f64(),
        maker.method()
    );
    Ok(())
}

fn artifact(from: &Path, to: &Path) -> Result<PathBuf, Box<dyn Error>> {
    if !from.is_dir() {
        return Ok(from.to_owned());
    }
    pack_folder(from, &mut File::create(to)?)?;
    Ok(to.to_owned())
}
