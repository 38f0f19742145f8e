use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use rustix::process::{Pid, test_kill_process};
use tempfile::TempDir;

use super::{Hook, HookEnd, HookFailure, HookRun};
use crate::cgroup::{Cgroups, Limits};
use crate::isolation::Isolation;
use crate::launch::Launch;
use crate::process::Exit;
use crate::program::Programs;
use crate::testing::until;

struct Bench(TempDir);

impl Bench {
    fn new(script: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("hooks")).unwrap();
        let hook = folder.path().join("hooks/after-install");
        fs::write(&hook, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(hook, fs::Permissions::from_mode(0o755)).unwrap();
        Bench(folder)
    }

    async fn run(&self, limit: Duration) -> HookEnd {
        let programs = Programs::new(
            Launch::confine_for_tests(),
            Cgroups::of(self.0.path()).unwrap_or_default(),
        );
        let run = HookRun {
            programs: &programs,
            home: None,
            hook: Hook::AfterInstall,
            folder: self.0.path(),
            limit,
            variables: &BTreeMap::from([("COHORT_ATTEMPT".to_owned(), "3".to_owned())]),
            run_as: None,
            isolation: Isolation::default(),
            limits: Limits::default(),
            kept_in: self.0.path(),
        };
        run.run().await.unwrap()
    }

    fn has_cgroups(&self) -> bool {
        Cgroups::of(self.0.path()).is_ok_and(|cgroups| !cgroups.is_empty())
    }

    fn pid(&self, name: &str) -> Option<Pid> {
        Pid::from_raw(fs::read_to_string(self.0.path().join(name)).ok()?.trim().parse().ok()?)
    }
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn exit_statuses_speak() {
    assert_eq!(Bench::new("exit 0").run(LONG).await, HookEnd::Passed);
    let later = Bench::new("echo wait for $COHORT_ATTEMPT; exit 21").run(LONG).await;
    assert_eq!(later, HookEnd::Later { output: "wait for 3\n".to_owned() });
    let failed = |exit: Exit, output: &str| {
        let (why, output) = (HookFailure::Exited(exit), output.to_owned());
        HookEnd::Failed { why, output }
    };
    let status = Bench::new("echo no; exit 1").run(LONG).await;
    assert_eq!(status, failed(Exit::Status(1), "no\n"));
    assert_eq!(Bench::new("kill -9 $$").run(LONG).await, failed(Exit::Signal(9), ""));
}

#[tokio::test]
async fn only_what_is_meant_for_it_is_in_its_environment() {
    let bench = Bench::new("env");
    bench.run(LONG).await;
    let env = fs::read_to_string(bench.0.path().join("after-install.log")).unwrap();
    assert!(env.contains("COHORT_ATTEMPT=3") && env.contains("PATH="), "{env}");
    assert!(!env.contains("CARGO"), "{env}");
}

#[tokio::test]
async fn absent_and_unusable_hooks_are_told_apart() {
    let bench = Bench::new("exit 0");
    let hook = bench.0.path().join("hooks/after-install");
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o644)).unwrap();
    assert!(matches!(bench.run(LONG).await, HookEnd::Failed { .. }));
    fs::write(&hook, "no program").unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(bench.run(LONG).await, HookEnd::Failed { .. }));
    fs::remove_file(hook).unwrap();
    assert_eq!(bench.run(LONG).await, HookEnd::Absent);
}

#[tokio::test]
async fn a_hook_that_hangs_is_ended_with_all_its_processes() {
    // It ignores SIGTERM, and so does its child.
    let bench = Bench::new("trap '' TERM\nsleep 600 & echo $! > child; wait");
    let end = bench.run(Duration::from_millis(1000)).await;
    let why = HookFailure::TimedOut { limit_ms: 1000 };
    assert_eq!(end, HookEnd::Failed { why, output: String::new() });
    let child = bench.pid("child").unwrap();
    until("the child is gone", || async { crate::process::start_ticks(child).is_none() }).await;
}

#[tokio::test]
async fn what_a_hook_leaves_behind_ends_with_it() {
    let bench = Bench::new("sleep 600 & echo $! > child");
    let began = Instant::now();
    assert_eq!(bench.run(LONG).await, HookEnd::Passed);
    let log = fs::read_to_string(bench.0.path().join("after-install.log")).unwrap();
    assert_eq!(log.is_empty(), !bench.has_cgroups(), "its log says so: {log}");
    assert!(began.elapsed() < LONG / 2, "it did not wait for the child's end of the pipe");
    let child = bench.pid("child").unwrap();
    until("the child is gone", || async { crate::process::start_ticks(child).is_none() }).await;
}

#[tokio::test]
async fn a_flood_of_output_is_bounded() {
    let bench = Bench::new("head -c 50000000 /dev/zero | tr '\\0' x; echo; echo the end; exit 1");
    let HookEnd::Failed { output, .. } = bench.run(LONG).await else { panic!("it failed") };
    assert!(output.ends_with("the end\n") && output.len() <= 2048);
    assert_eq!(fs::metadata(bench.0.path().join("after-install.log")).unwrap().len(), 64 * 1024);
}

#[tokio::test]
async fn a_hook_of_a_killed_agent_is_ended_before_the_next_run() {
    // The note of an earlier agent, whose hook is still running.
    let mut earlier = std::process::Command::new("sleep");
    let mut earlier = std::os::unix::process::CommandExt::process_group(&mut earlier, 0)
        .arg("600")
        .spawn()
        .unwrap();
    let pid = Pid::from_raw(i32::try_from(earlier.id()).unwrap()).unwrap();
    let bench = Bench::new("exit 0");
    crate::orphan::note(&bench.0.path().join("running"), pid);
    assert!(test_kill_process(pid).is_ok());
    assert_eq!(bench.run(LONG).await, HookEnd::Passed);
    assert!(!earlier.wait().unwrap().success());
}

#[tokio::test]
async fn a_child_in_a_session_of_its_own_ends_with_a_hook_that_hangs() {
    let bench = Bench::new("setsid sh -c 'echo $$ > away; exec sleep 600' &\nwait");
    let limit = Duration::from_secs(1);
    assert!(matches!(bench.run(limit).await, HookEnd::Failed { .. }));
    let away = bench.pid("away").expect("it was there before the time was up");
    until("it is gone", || async { crate::process::start_ticks(away).is_none() }).await;
}
