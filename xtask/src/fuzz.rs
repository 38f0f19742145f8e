//! Builds the fuzzer and runs its targets one after the other: libFuzzer with the pinned compiler.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Args;

use crate::build::{cargo, host_triple, root, succeed, target};
use crate::packages::need;

/// What LLVM adds for libFuzzer to see which code an input reaches. These flags are stable, so
/// what is fuzzed is what the pinned compiler makes of the sources.
const COVERAGE: &str = "-Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

/// An input that takes longer, in seconds, is a hang.
const INPUT_S_MAX: u32 = 20;
/// A target that uses more, in MiB, has a decoder without a limit.
const MEMORY_MIB_MAX: u32 = 2048;
/// Longest input, in bytes: most are far shorter, and the fuzzer starts with those.
const INPUT_BYTES_MAX: u32 = 16 << 10;
/// What is kept of one target's findings in the repository, in bytes and in files.
const KEPT_BYTES_MAX: u64 = 32 << 10;
const KEPT_FILES_MAX: usize = 40;
/// Longest input that is kept, in bytes.
const KEPT_INPUT_BYTES_MAX: u64 = 4 << 10;

#[derive(Debug, Args)]
pub(crate) struct FuzzArgs {
    /// Targets, by the names of their directories in crates/fuzz/corpus [default: all]
    names: Vec<String>,
    /// Minutes per target
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Afterwards, keep a sample of what was found in the repository's corpora
    #[arg(long)]
    save: bool,
}

/// How a target fared.
struct Ended {
    name: String,
    seconds: u64,
    executions: u64,
    corpus: usize,
    /// Inputs that broke a property, took too long or used too much memory.
    failures: Vec<PathBuf>,
}

/// False if an input broke a property.
pub(crate) fn run(args: &FuzzArgs) -> Result<bool> {
    let known = known()?;
    for name in &args.names {
        ensure!(known.contains(name), "no target `{name}`; there are {}", known.join(", "));
    }
    need("c++", "--version", "g++")?;
    let program = build()?;
    let names = if args.names.is_empty() { known } else { args.names.clone() };
    let mut all = Vec::new();
    for name in &names {
        eprintln!("{name}: {} minutes, log in {}", args.minutes, log(name).display());
        all.push(fuzz(&program, name, args.minutes)?);
        if args.save {
            save(&program, name)?;
        }
    }
    println!("{:<18}{:>8}{:>14}{:>9}{:>9}", "TARGET", "SECONDS", "EXECUTIONS", "CORPUS", "CRASHES");
    for Ended { name, seconds, executions, corpus, failures } in &all {
        println!("{name:<18}{seconds:>8}{executions:>14}{corpus:>9}{:>9}", failures.len());
    }
    let failures =
        || all.iter().flat_map(|ended| ended.failures.iter().map(|it| (&ended.name, it)));
    for (name, input) in failures() {
        println!("{name} failed: {}", input.display());
    }
    if failures().next().is_some() {
        println!("mend it, and keep the input: cp INPUT crates/fuzz/corpus/TARGET/mended-WHAT");
    }
    Ok(failures().next().is_none())
}

fn corpora() -> PathBuf {
    root().join("crates/fuzz/corpus")
}

/// The targets: a test holds their names to the directories.
fn known() -> Result<Vec<String>> {
    let entries = fs::read_dir(corpora()).context("crates/fuzz/corpus")?;
    let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names: Vec<String> = names.collect::<Result<_>>()?;
    names.sort();
    Ok(names)
}

fn work(kind: &str, name: &str) -> PathBuf {
    target("fuzz").join(kind).join(name)
}

fn log(name: &str) -> PathBuf {
    work("logs", name).with_extension("log")
}

fn build() -> Result<PathBuf> {
    let (triple, out) = (host_triple()?, target("fuzz"));
    let mut build = cargo();
    build.args(["build", "--package", "cohort-fuzz", "--features", "libfuzzer"]);
    // With a target named, programs that run during the build are not instrumented.
    build.args(["--profile", "fuzz", "--target", &triple]).env("CARGO_TARGET_DIR", &out);
    succeed(build.env("RUSTFLAGS", COVERAGE).env_remove("CARGO_ENCODED_RUSTFLAGS"))?;
    Ok(out.join(triple).join("fuzz/cohort-fuzz"))
}

fn libfuzzer(program: &Path, name: &str) -> Command {
    let mut command = Command::new(program);
    command.env("COHORT_FUZZ_TARGET", name).current_dir(root());
    command.arg(format!("-timeout={INPUT_S_MAX}"));
    command.arg(format!("-rss_limit_mb={MEMORY_MIB_MAX}"));
    command.arg(format!("-max_len={INPUT_BYTES_MAX}"));
    command
}

fn fuzz(program: &Path, name: &str, minutes: f64) -> Result<Ended> {
    let (corpus, failed) = (work("corpus", name), work("failures", name));
    for folder in [&corpus, &failed, &work("logs", name)] {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let before = listed(&failed)?;
    let output = File::create(log(name)).with_context(|| log(name).display().to_string())?;
    let begun = Instant::now();
    let mut command = libfuzzer(program, name);
    command.args([&corpus, &corpora().join(name)]);
    // 0 would mean: without end.
    command.arg(format!("-max_total_time={}", ((minutes * 60.0) as u64).max(1)));
    command.arg(format!("-artifact_prefix={}/", failed.display())).arg("-print_final_stats=1");
    let status = command.stdout(output.try_clone()?).stderr(output).status();
    let status = status.with_context(|| program.display().to_string())?;
    let text = String::from_utf8_lossy(&fs::read(log(name))?).into_owned();
    let mut failures = listed(&failed)?;
    failures.retain(|input| !before.contains(input));
    ensure!(status.success() || !failures.is_empty(), "{status}: see {}", log(name).display());
    Ok(Ended {
        name: name.to_owned(),
        seconds: begun.elapsed().as_secs(),
        executions: executions(&text),
        corpus: listed(&corpus)?.len(),
        failures,
    })
}

/// From the last lines of libFuzzer, or from the last progress line if it crashed.
fn executions(log: &str) -> u64 {
    let stat = log.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
    let progress = || log.lines().rev().find_map(|line| line.strip_prefix('#')?.split('\t').next());
    stat.or_else(progress).and_then(|number| number.trim().parse().ok()).unwrap_or(0)
}

fn listed(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    let mut paths: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    paths.sort();
    Ok(paths)
}

/// Whether libFuzzer named it, by its hash. People name what has to stay.
fn is_found(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// Replaces what was found by a sample of the fewest inputs that reach as much. Seeds, and what was
/// mended, stay.
fn save(program: &Path, name: &str) -> Result<()> {
    let (kept, merged) = (corpora().join(name), work("merged", name));
    if merged.exists() {
        fs::remove_dir_all(&merged)?;
    }
    fs::create_dir_all(&merged)?;
    let output = File::create(log(name).with_extension("merge"))?;
    let mut command = libfuzzer(program, name);
    command.arg("-set_cover_merge=1").args([&merged, &work("corpus", name), &kept]);
    succeed(command.stdout(output.try_clone()?).stderr(output))?;
    for path in listed(&kept)?.iter().filter(|path| is_found(path)) {
        fs::remove_file(path)?;
    }
    let (mut bytes, mut files) = (0, 0);
    // By their hashes: a sample of all sizes.
    for path in listed(&merged)? {
        let length = fs::metadata(&path)?.len();
        if length <= KEPT_INPUT_BYTES_MAX
            && bytes + length <= KEPT_BYTES_MAX
            && files < KEPT_FILES_MAX
        {
            fs::copy(&path, kept.join(path.file_name().unwrap_or_default()))?;
            bytes += length;
            files += 1;
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "fuzz_test.rs"]
mod fuzz_test;
