//! A release that cuts its own server off from the group: the host restores the old one.
//!
//! The fleet runs in its own network namespace, and one agent in another, so that a hook can take
//! down the only link between the two. The kernel removes both with their last process.

use std::net::Ipv4Addr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use cohort_core::phase::PhaseName;
use cohort_core::report::Step;
use cohort_trial::Fleet;
use cohort_trial::release::WebRelease;
use cohort_trial::watch::{app, failed_step, holds, reason};

use crate::trial::{GROUP, PATIENCE, PLATFORM, Trial, Wanted, policy, until};

/// Set in the process that runs in the namespace.
const INSIDE: &str = "COHORT_TEST_INSIDE";
const OWN: &str = "unreachable::a_release_that_cuts_its_server_off_is_undone";
pub(crate) const HERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub(crate) const THERE: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
/// The server on the other side of the link, the first to get a release.
const CUT_OFF: &str = "intel-a-02";

const UPDATE: &str = r#"
max_parallel = 1
min_healthy_time = "300ms"
healthy_deadline = "20s"
progress_deadline = "60s"
max_unavailable = 1
confirm_within = "4s"
unreachable_after = "30s"
surroundings_allowed = 1
"#;

#[test]
fn a_release_that_cuts_its_server_off_is_undone() -> Result<()> {
    in_a_namespace(OWN, inside)
}

/// Runs a test, named `own`, in its own network namespace.
pub(crate) fn in_a_namespace(own: &str, inside: impl FnOnce() -> Result<()>) -> Result<()> {
    if std::env::var_os(INSIDE).is_some() {
        return inside();
    }
    let program = std::env::current_exe()?;
    let mut command = Command::new("unshare");
    // Root needs no user namespace; other users may be allowed one.
    if !rustix::process::geteuid().is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    let able = run(Command::new("unshare").args(command.get_args()).args(["--net", "true"]));
    if let Err(error) = able {
        ensure!(std::env::var_os("CI").is_none(), "a skipped test is a failure: {error:#}");
        eprintln!("skipped: cannot create network namespaces on this machine: {error:#}");
        return Ok(());
    }
    command.arg("--net").arg(program).args([own, "--exact", "--nocapture"]).env(INSIDE, "1");
    run(&mut command)
}

fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    ensure!(status.success(), "{command:?}: {status}");
    Ok(())
}

fn ip(args: &str) -> Result<()> {
    run(Command::new("ip").args(args.split(' ')))
}

/// The other namespace; exists until this is dropped.
pub(crate) struct There(Child);

impl There {
    pub(crate) fn new() -> Result<There> {
        let mut command = Command::new("unshare");
        command.args(["--net", "sleep", "600"]).stdin(Stdio::null());
        let there = There(command.spawn()?);
        let own = std::fs::read_link("/proc/self/ns/net")?;
        let path = format!("/proc/{}/ns/net", there.0.id());
        until("the other namespace exists", PATIENCE, || {
            std::fs::read_link(&path).is_ok_and(|other| other != own)
        })?;
        ip("link set lo up")?;
        ip("link add here type veth peer name there")?;
        ip(&format!("link set there netns {}", there.0.id()))?;
        ip(&format!("addr add {HERE}/24 dev here"))?;
        ip("link set here up")?;
        there.ip("link set lo up")?;
        there.ip(&format!("addr add {THERE}/24 dev there"))?;
        there.ip("link set there up")?;
        Ok(there)
    }

    /// The command-line prefix that runs a program there.
    pub(crate) fn enter(&self) -> Vec<String> {
        let pid = self.0.id();
        ["nsenter", "--net", "--target"]
            .map(str::to_owned)
            .into_iter()
            .chain([pid.to_string()])
            .collect()
    }

    pub(crate) fn ip(&self, args: &str) -> Result<()> {
        let enter = self.enter();
        run(Command::new(&enter[0]).args(&enter[1..]).arg("ip").args(args.split(' ')))
    }
}

impl Drop for There {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn inside() -> Result<()> {
    let there = There::new()?;
    let options = Wanted { servers: 3, ..Wanted::default() }.options("unreachable")?;
    let dir = options.dir.clone();
    let mut fleet = Fleet::lay_out_at(options, HERE)?;
    fleet.place(CUT_OFF, THERE, &there.enter());
    let trial = Trial::around(fleet, dir)?;
    trial.first_release(&policy(UPDATE, ""), &WebRelease::new("1.0.0"))?;

    let cut = format!(
        "#!/bin/sh\n[ $COHORT_SERVER = {CUT_OFF} ] || exit 0\nexec ip link set there down\n"
    );
    trial.publish(&WebRelease::new("1.1.0").hook("application-start", &cut), &[PLATFORM])?;

    // It ran the release, could not reach the group, and restored the old one, all on its own.
    until("the cut-off server has gone back on its own", PATIENCE, || {
        trial.said(CUT_OFF).is_ok_and(|said| {
            let starts: Vec<&str> = said
                .iter()
                .filter(|line| line.event == "start")
                .map(|line| line.version.as_str())
                .collect();
            starts == ["1.0.0", "1.1.0", "1.0.0"]
        })
    })?;
    let status = trial.until(GROUP, PATIENCE, |status| status.linearizable)?;
    let state = app(&status).context("the group has the app")?.state;
    ensure!(
        !matches!(state, PhaseName::Held | PhaseName::RollingBack | PhaseName::Running),
        "the group is {state} but cannot know yet"
    );

    there.ip("link set there up")?;
    let held = trial.until(GROUP, PATIENCE, |status| holds(status, "1.1.0", "1.0.0"))?;
    // It reports that it went back on its own.
    ensure!(failed_step(&held) == Some(Step::Undo), "{:?}", reason(&held));
    until("the server is ready again", PATIENCE, || {
        trial.ready(CUT_OFF).is_ok_and(|(ready, _)| ready)
    })?;
    trial.pass()
}
