//! Everything that proves the product: formatting, lints, every test, and the demo's story.
//!
//! Every part runs, even if an earlier one failed; the last line counts what passed and failed.
//! With `CI=true` a skipped test counts as failed.

use std::io::{BufRead as _, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use regex::Regex;

use crate::build::{cargo, succeed};
use crate::packages::{install, need};

#[derive(Debug, Args)]
pub(crate) struct TestArgs {
    /// Number of agents in the demo
    #[arg(long, default_value_t = 12)]
    agents: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Count {
    passed: u32,
    failed: u32,
    skipped: u32,
}

impl Count {
    fn of(passed: bool) -> Count {
        Count { passed: u32::from(passed), failed: u32::from(!passed), skipped: 0 }
    }

    fn add(&mut self, other: Count) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }
}

/// Formatting, lints, every test, and the demo.
pub(crate) fn run(args: &TestArgs) -> Result<bool> {
    let ci = std::env::var("CI").is_ok_and(|ci| ci == "true" || ci == "1");
    need_python()?;
    // A test runs a mirror both in front of and behind nginx.
    need("nginx", "-v", "nginx-light")?;
    let mut total = Count::default();
    let mut part = |name: &str, run: &mut dyn FnMut() -> Result<Count>| {
        println!("\n=== {name}");
        let begun = Instant::now();
        let mut count = run().unwrap_or_else(|error| {
            println!("error: {error:#}");
            Count::of(false)
        });
        if ci && count.skipped > 0 {
            println!("{} tests were skipped: with CI=true that is a failure", count.skipped);
            count.failed += count.skipped;
        }
        let Count { passed, failed, skipped } = count;
        let seconds = begun.elapsed().as_secs();
        println!("=== {name}: {passed} passed, {failed} failed, {skipped} skipped in {seconds} s");
        total.add(count);
    };
    part("formatting", &mut || step(cargo().args(["fmt", "--all", "--check"])));
    part("tidy", &mut || {
        let (passed, failed) = crate::tidy::check_all()?;
        Ok(Count { passed, failed, skipped: 0 })
    });
    part("lints", &mut || {
        let clippy = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
        step(cargo().args(clippy))
    });
    // The binaries that tests and demo start.
    part("programs", &mut || crate::build::programs(false).map(|_| Count::of(true)));
    part("tests", &mut tests);
    part("documentation's tests", &mut || libtest(&["test", "--doc", "--workspace"]));
    part("the demo's story", &mut || story(args.agents));
    println!("\n{} passed, {} failed", total.passed, total.failed);
    Ok(total.failed == 0)
}

fn step(command: &mut Command) -> Result<Count> {
    succeed(command).map(|()| Count::of(true))
}

/// Python with `venv` and `pip`: python-tuf reads our repository, and moto plays an object store.
fn need_python() -> Result<()> {
    let there = || {
        Command::new("python3")
            .args(["-c", "import venv, ensurepip"])
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|status| status.success())
    };
    if there() {
        return Ok(());
    }
    install(&["python3", "python3-venv"])?;
    ensure!(
        there(),
        "python3 with the modules venv and ensurepip is missing; install the packages python3 and \
         python3-venv"
    );
    Ok(())
}

/// Prefix of nextest's summary.
const NEXTEST: &str = "Summary [";
/// Prefix of the standard runner's summary.
const LIBTEST: &str = "test result: ";

/// Every test of the workspace, with nextest if it is installed.
fn tests() -> Result<Count> {
    let nextest = cargo()
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    if !nextest {
        return libtest(&["test", "--workspace", "--all-targets", "--no-fail-fast"]);
    }
    let mut count = None;
    let mut command = cargo();
    command.args(["nextest", "run", "--workspace", "--no-fail-fast"]).stderr(Stdio::piped());
    // Thirty frames of the runtime would bury a failure's message.
    command.env("RUST_BACKTRACE", "0");
    let passed = watch(&mut command, |line| {
        if let Some(found) = summary(line, NEXTEST) {
            count = Some(found);
        }
        eprintln!("{line}");
    })?;
    let mut count = count.context("nextest ended without a summary")?;
    if !passed && count.failed == 0 {
        count.failed = 1;
    }
    Ok(count)
}

/// Runs tests with the standard runner.
fn libtest(args: &[&str]) -> Result<Count> {
    let mut count = Count::default();
    let mut command = cargo();
    command.args(args).stdout(Stdio::piped());
    let passed = watch(&mut command, |line| {
        if let Some(found) = summary(line, LIBTEST) {
            count.add(found);
        }
        println!("{line}");
    })?;
    if !passed && count.failed == 0 {
        count.failed = 1;
    }
    Ok(count)
}

/// The demo, unattended: every group has to end every act as expected.
fn story(agents: usize) -> Result<Count> {
    let mut count = Count::default();
    let mut command = cargo();
    command.args(["run", "--quiet", "--package", "xtask", "--", "demo", "--exit"]);
    command.args(["--agents", &agents.to_string()]).stdout(Stdio::piped());
    let passed = watch(&mut command, |line| {
        let ended: Option<serde_json::Value> = serde_json::from_str(line).ok();
        if let Some(ok) = ended.and_then(|ended| ended["ok"].as_bool()) {
            count.add(Count::of(ok));
        }
        println!("{line}");
    })?;
    ensure!(count != Count::default(), "the demo printed no outcome");
    if !passed && count.failed == 0 {
        // A process was left running, or an act could not start.
        count.failed = 1;
    }
    Ok(count)
}

/// Runs a command and passes the lines of its piped stream to `line`. True on success.
fn watch(command: &mut Command, mut line: impl FnMut(&str)) -> Result<bool> {
    let mut child = command.spawn().with_context(|| format!("{command:?}"))?;
    let piped: Box<dyn Read> = match (child.stdout.take(), child.stderr.take()) {
        (Some(stdout), _) => Box::new(stdout),
        (None, Some(stderr)) => Box::new(stderr),
        (None, None) => Box::new(std::io::empty()),
    };
    for text in BufReader::new(piped).split(b'\n') {
        line(&String::from_utf8_lossy(&text?));
    }
    Ok(child.wait()?.success())
}

/// `Summary [ 1.2s] 5 tests run: 4 passed (1 slow), 1 failed, 2 skipped` of nextest, and
/// `test result: ok. 5 passed; 0 failed; 1 ignored; …` of the standard runner.
///
/// Only lines with this prefix count: nextest repeats the output of a failed test, which includes
/// the standard runner's line about that test.
fn summary(line: &str, prefix: &str) -> Option<Count> {
    let line = line.trim_start().strip_prefix(prefix)?;
    let number = Regex::new(r"(\d+) (tests? run|passed|failed|skipped|ignored)").ok()?;
    let of = |word: &str| {
        number.captures_iter(line).find(|found| found[2].starts_with(word))?[1].parse::<u32>().ok()
    };
    let passed = of("passed").unwrap_or(0);
    // `3/5 tests run` after an interruption: tests that did not run count as failed.
    let failed = of("test").map(|run| run.saturating_sub(passed)).or(of("failed")).unwrap_or(0);
    Some(Count { passed, failed, skipped: of("skipped").or(of("ignored")).unwrap_or(0) })
}

#[cfg(test)]
#[path = "test_test.rs"]
mod test_test;
