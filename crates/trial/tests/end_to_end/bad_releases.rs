//! Releases that misbehave: a hook that hangs, one that floods its output, one that says "later", a
//! service that dies soon after its start.

use anyhow::{Context as _, Result, ensure};
use cohort_core::report::Step;
use cohort_trial::release::WebRelease;
use cohort_trial::watch::{failed_step, holds, reason};

use crate::trial::{GROUP, ONE_BY_ONE, PATIENCE, PLATFORM, Trial, policy};

/// A time limit of two seconds for every hook.
const IMPATIENT: &str = r#"
rollback = "revert"

[service]
command = ["./bin/web", "--port", "{port}"]
stop_timeout = "3s"

[hooks]
timeout = "2s"
"#;

/// A hook that hangs; its `sleep` duration is unique, so that the test finds its processes.
const HANGS: &str = "#!/bin/sh\necho about to hang\nsleep 86397 &\nsetsid sleep 86397 &\nwait\n";
const HANGING: &str = "sleep 86397";

/// Bytes that a flooding hook prints: far more than the host may keep anywhere.
const FLOOD_BYTES: u64 = 64 << 20;
/// Bytes that the host keeps of a hook's output.
const KEPT_BYTES_MAX: u64 = 64 << 10;
/// How much an agent may grow because of it, in KiB.
const GROWTH_KB_MAX: u64 = 24 << 10;

#[test]
fn a_hook_that_hangs_is_ended_with_its_children() -> Result<()> {
    let trial = Trial::of("hook-hangs", 3)?;
    trial.first_release(&policy(ONE_BY_ONE, ""), &WebRelease::new("1.0.0"))?;
    let mut bad = WebRelease::new("1.1.0").hook("after-install", HANGS);
    bad.cohort_toml = Some(IMPATIENT.to_owned());
    trial.publish(&bad, &[PLATFORM])?;
    let held = trial.until(GROUP, PATIENCE, |status| holds(status, "1.1.0", "1.0.0"))?;
    // The step of `after-install`, which nothing but its time limit ends.
    ensure!(failed_step(&held) == Some(Step::Switch), "{:?}", reason(&held));
    let hanging: Vec<_> = trial
        .processes_left()
        .into_iter()
        .filter(|(_, command)| command.contains(HANGING))
        .collect();
    ensure!(hanging.is_empty(), "child processes of the hook are left: {hanging:?}");
    trial.pass()
}

#[test]
fn a_hook_that_floods_and_one_that_says_later() -> Result<()> {
    let trial = Trial::of("hook-floods", 3)?;
    trial.first_release(&policy(ONE_BY_ONE, ""), &WebRelease::new("1.0.0"))?;

    let script = format!("#!/bin/sh\nyes flood | head -c {FLOOD_BYTES}\necho the end\n");
    let before: Vec<u64> = peaks(&trial)?;
    trial.roll_out(&WebRelease::new("1.1.0").hook("after-install", &script))?;
    for ((server, peak), before) in trial.servers().iter().zip(peaks(&trial)?).zip(before) {
        let growth = peak.saturating_sub(before);
        ensure!(growth <= GROWTH_KB_MAX, "{server} grew by {growth} KiB");
        let kept = trial.agents()[server].dir.join("data/apps/web/hooks/after-install.log");
        let text = std::fs::read(&kept).with_context(|| kept.display().to_string())?;
        ensure!(text.len() as u64 <= KEPT_BYTES_MAX, "kept {} bytes", text.len());
        ensure!(
            text.ends_with(b"the end\n"),
            "the kept output does not end with the hook's last line"
        );
    }

    let attempts = trial.dir().join("attempts");
    let script = format!(
        "#!/bin/sh\necho \"$COHORT_SERVER $COHORT_ATTEMPT\" >> {}\n\
         [ \"$COHORT_ATTEMPT\" -ge 3 ] || exit 21\n",
        attempts.display()
    );
    trial.roll_out(&WebRelease::new("1.2.0").hook("before-install", &script))?;
    let text = std::fs::read_to_string(&attempts)?;
    for server in trial.servers() {
        let mine: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix(&server)).collect();
        ensure!(mine == [" 1", " 2", " 3"], "{server}: {mine:?}");
    }
    trial.pass()
}

#[test]
fn a_service_that_dies_after_two_seconds_is_held() -> Result<()> {
    let trial = Trial::of("dies-soon", 3)?;
    let update = ONE_BY_ONE.replace("\"300ms\"", "\"3s\"");
    trial.first_release(&policy(ONE_BY_ONE, ""), &WebRelease::new("1.0.0"))?;
    trial.apply(&policy(&update, ""))?;
    trial.publish(&WebRelease::new("1.1.0").fault("die_after_ms = 2000"), &[PLATFORM])?;
    let held = trial.until(GROUP, PATIENCE, |status| holds(status, "1.1.0", "1.0.0"))?;
    ensure!(failed_step(&held) == Some(Step::Check), "{:?}", reason(&held));
    // The bad release ran on one server only, and that one has gone back.
    let mut tried = 0;
    for server in trial.servers() {
        let said = trial.said(&server)?;
        tried += usize::from(said.iter().any(|line| line.version == "1.1.0"));
        let last = said.iter().rfind(|line| line.event == "start").context("it started")?;
        ensure!(last.version == "1.0.0", "{server} runs {}", last.version);
    }
    ensure!(tried == 1, "{tried} servers tried it");
    crate::prober::version_at(trial.agents()["intel-a-01"].service)
        .context("the service answers")?;
    trial.until(GROUP, PATIENCE, |status| holds(status, "1.1.0", "1.0.0"))?;
    trial.pass()
}

/// Each agent's peak memory, in KiB.
fn peaks(trial: &Trial) -> Result<Vec<u64>> {
    let mut peaks = Vec::new();
    for server in trial.servers() {
        let pid = trial.agent_pid(&server).context("the agent runs")?;
        let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        peaks.push(number.context("a process has a peak")?.parse()?);
    }
    Ok(peaks)
}
