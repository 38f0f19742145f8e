//! The fleet: directories, ports, processes, and operations on them.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use cohort_core::ids::{GroupId, ServerId};
use cohort_identity::{Alpn, Identity, Peer, Role};
use cohort_wire::agent::{
    COMMAND, CommandAnswer, CommandRequest, GroupStatus, STATUS, SignedSubmission, Submission,
    ToGroup,
};
use cohort_wire::http::{Call, Client, Target};
use rustix::process::Signal;

use crate::ports::Ports;
use crate::process::{Process, end_all, exists, kill};
use crate::release::WebRelease;

mod layout;
mod mirrors;

pub use mirrors::replace_mirror;

/// The programs and files that a fleet runs.
#[derive(Debug, Clone)]
pub struct Programs {
    pub cohort: PathBuf,
    pub web: PathBuf,
    pub artifact: PathBuf,
}

/// How the fleet is laid out.
#[derive(Debug, Clone)]
pub struct FleetOptions {
    /// Directory for everything; the fleet creates and owns it.
    pub dir: PathBuf,
    pub programs: Programs,
    /// Platform, zone and number of servers of each group.
    pub groups: Vec<(String, String, usize)>,
    /// Number of mirrors; with none, agents read the hub's repository.
    pub mirrors: usize,
    /// Extra lines for every `agent.toml`.
    pub agent_toml: String,
}

/// One agent of the fleet.
#[derive(Debug)]
pub struct Agent {
    /// Unique in the fleet.
    pub server: String,
    pub group: String,
    pub address: SocketAddr,
    pub probe: SocketAddr,
    pub service: SocketAddr,
    /// The directory with its configuration and data.
    pub dir: PathBuf,
    /// Prefix of its command line, such as `nsenter`; usually empty.
    prefix: Vec<String>,
    process: Option<Process>,
}

/// A hub, mirrors and servers on this machine, as processes of the production binary.
pub struct Fleet {
    options: FleetOptions,
    ports: Ports,
    hub: Option<Process>,
    hub_address: SocketAddr,
    mirrors: Vec<(PathBuf, SocketAddr, Option<Process>)>,
    agents: BTreeMap<String, Agent>,
    runtime: tokio::runtime::Runtime,
    client: Option<Client>,
}

/// `COHORT_LOG` of every process: tests and benchmarks read lines of this level.
fn log_filter() -> String {
    std::env::var("COHORT_LOG").unwrap_or_else(|_| "info".into())
}

impl Fleet {
    /// Creates the fleet and starts its hub, mirrors and agents.
    pub fn start(options: FleetOptions) -> Result<Fleet> {
        let mut fleet = Fleet::lay_out(options)?;
        fleet.begin()?;
        Ok(fleet)
    }

    /// Starts everything in the layout.
    pub fn begin(&mut self) -> Result<()> {
        self.start_hub()?;
        for index in 0..self.mirrors.len() {
            self.sync_mirror(index)?;
            self.start_mirror(index)?;
        }
        let names: Vec<String> = self.agents.keys().cloned().collect();
        for name in &names {
            self.make_agent(name)?;
            self.start_agent(name)?;
        }
        Ok(())
    }

    /// The directory of the hub and of the operator.
    pub fn context_dir(&self) -> PathBuf {
        self.options.dir.join("hub")
    }

    /// The directory of everything.
    pub fn dir(&self) -> &Path {
        &self.options.dir
    }

    /// The programs that it runs.
    pub fn programs(&self) -> &Programs {
        &self.options.programs
    }

    /// The agents, by name.
    pub fn agents(&self) -> &BTreeMap<String, Agent> {
        &self.agents
    }

    /// The names of the groups.
    pub fn groups(&self) -> Vec<String> {
        self.options.groups.iter().map(|(platform, zone, _)| format!("{platform}.{zone}")).collect()
    }

    /// Where the services listen.
    pub fn services(&self) -> BTreeMap<String, SocketAddr> {
        self.agents.values().map(|agent| (agent.server.clone(), agent.service)).collect()
    }

    /// A `cohort` command as the operator would type it.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.options.programs.cohort);
        command.args(args).env("COHORT_CONTEXT", self.context_dir()).env("NO_COLOR", "1");
        command.env("COHORT_LOG", log_filter());
        command
    }

    /// Runs a command as the operator, whatever its exit code.
    pub fn try_run(&self, args: &[&str]) -> Result<Output> {
        self.command(args).output().with_context(|| format!("cohort {}", args.join(" ")))
    }

    /// Runs a command as the operator and returns its standard output. An error has all of its
    /// output.
    pub fn run(&self, args: &[&str]) -> Result<String> {
        let output = self.try_run(args)?;
        ensure!(
            output.status.success(),
            "cohort {}: {}\n{}{}",
            args.join(" "),
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// The hub's API.
    pub fn hub_address(&self) -> SocketAddr {
        self.hub_address
    }

    /// Starts the hub and waits until it answers.
    pub fn start_hub(&mut self) -> Result<()> {
        let config = self.context_dir().join("hub.toml");
        let mut command = self.command(&["hub", "--config", &config.display().to_string()]);
        let log = self.log_file("hub");
        let mut process = Process::start("hub", &mut command, &log)?;
        process.until_it_listens(self.hub_address, &log)?;
        self.hub = Some(process);
        Ok(())
    }

    /// Stops the hub: SIGTERM, then SIGKILL after 10 s.
    pub fn stop_hub(&mut self) {
        if let Some(mut hub) = self.hub.take() {
            hub.stop(Duration::from_secs(10));
        }
    }

    /// Log file of the hub, a mirror or an agent, by name.
    pub fn log_file(&self, name: &str) -> PathBuf {
        self.options.dir.join("logs").join(format!("{name}.log"))
    }

    /// Starts an agent, or restarts it after a stop.
    pub fn start_agent(&mut self, name: &str) -> Result<()> {
        let config = self.agents[name].dir.join("agent.toml");
        let prefix = &self.agents[name].prefix;
        let mut command = match prefix.split_first() {
            None => Command::new(&self.options.programs.cohort),
            Some((program, args)) => {
                let mut command = Command::new(program);
                command.args(args).arg(&self.options.programs.cohort);
                command
            }
        };
        command.args(["agent", "--config", &config.display().to_string()]);
        command.env("NO_COLOR", "1").env("COHORT_LOG", log_filter());
        let process = Process::start(name, &mut command, &self.log_file(name))?;
        let agent = self.agents.get_mut(name).context("a known agent")?;
        agent.process = Some(process);
        Ok(())
    }

    /// Kills an agent (SIGKILL). Its service keeps running.
    pub fn kill_agent(&mut self, name: &str) {
        if let Some(mut process) = self.agents.get_mut(name).and_then(|agent| agent.process.take())
        {
            process.kill();
        }
    }

    /// Kills everything on a server at once: agent, guard, services, hooks. Like a power cut,
    /// except that the kernel still writes its buffers to disk.
    pub fn power_off(&mut self, name: &str) {
        let dir = self.agents[name].dir.clone();
        self.kill_agent(name);
        // Twice: one of them may have been starting another process.
        for _ in 0..2 {
            for (pid, _) in processes_of(&dir) {
                kill(pid);
            }
        }
    }

    /// Stops an agent with SIGTERM. True when it exited on its own.
    pub fn stop_agent(&mut self, name: &str) -> bool {
        match self.agents.get_mut(name).and_then(|agent| agent.process.take()) {
            Some(mut process) => process.stop(Duration::from_secs(15)),
            None => true,
        }
    }

    /// An agent's pid, while it runs.
    pub fn agent_pid(&self, name: &str) -> Option<u32> {
        self.agents.get(name)?.process.as_ref().map(Process::id)
    }

    /// Sends a signal to an agent, such as STOP and CONT.
    pub fn signal_agent(&mut self, name: &str, signal: Signal) {
        if let Some(process) = self.agents.get_mut(name).and_then(|agent| agent.process.as_mut()) {
            process.signal(signal);
        }
    }

    /// Publishes a release for these platforms, points the channel `stable` to it, and copies it to
    /// the mirrors.
    pub fn publish(&self, release: &WebRelease, platforms: &[&str]) -> Result<()> {
        self.publish_unseen(release, platforms)?;
        self.sync_mirrors()
    }

    /// Like [`Fleet::publish`], without the copy to the mirrors: groups that read mirrors do not
    /// see the release before [`Fleet::sync_mirrors`].
    pub fn publish_unseen(&self, release: &WebRelease, platforms: &[&str]) -> Result<()> {
        let dist = release.write(&self.options.dir, &self.options.programs)?;
        let dist = dist.display().to_string();
        for platform in platforms {
            let version = release.version.as_str();
            self.run(&[
                "publish",
                &dist,
                "--app",
                "web",
                "--version",
                version,
                "--platform",
                platform,
            ])?;
        }
        self.run(&["channel", "set", "web", "stable", &release.version, "--create"]).map(drop)
    }

    /// Applies a policy (TOML) for the app `web`.
    pub fn apply(&self, policy: &str) -> Result<()> {
        let file = self.options.dir.join("web.toml");
        fs::write(&file, policy)?;
        self.run(&["app", "apply", "-f", &file.display().to_string()]).map(drop)
    }

    /// Status of a group, from any of its agents.
    pub fn status(&self, group: &str) -> Result<GroupStatus> {
        let mut last = None;
        let mut unsure = None;
        for agent in self.agents.values().filter(|a| a.group == group && a.process.is_some()) {
            match self.ask(agent) {
                Ok(status) if status.linearizable => return Ok(status),
                Ok(status) => unsure = Some(status),
                Err(error) => last = Some(error),
            }
        }
        match (unsure, last) {
            (Some(status), _) => Ok(status),
            (None, Some(error)) => Err(error),
            (None, None) => bail!("no agent of {group} runs"),
        }
    }

    /// Status of a group, from this agent.
    pub fn ask(&self, agent: &Agent) -> Result<GroupStatus> {
        self.call(&agent.server, Call::get(STATUS).deadline(Duration::from_secs(4)))
    }

    /// Sends a request to an agent's control port, as the operator.
    pub fn call<T: serde::de::DeserializeOwned>(&self, server: &str, call: Call) -> Result<T> {
        let agent = self.agents.get(server).context("a known agent")?;
        self.call_at(agent.address, Peer::new(Role::Agent, server)?, Alpn::Control, call)
    }

    /// Submits a command to a group through one of its agents, as the operator.
    pub fn submit(
        &self,
        server: &str,
        group: &GroupId,
        command: CommandRequest,
    ) -> Result<CommandAnswer> {
        let operator = Identity::load(&self.context_dir().join("operator"))?;
        let signed = SignedSubmission::sign(&operator, group, Submission::Command(command))?;
        self.call(server, Call::post(COMMAND, &ToGroup::new(group, signed)))
    }

    /// Sends a request to the hub's API, as the operator.
    pub fn call_hub<T: serde::de::DeserializeOwned>(&self, call: Call) -> Result<T> {
        self.call_at(self.hub_address, Peer::new(Role::Hub, "hub")?, Alpn::Hub, call)
    }

    fn call_at<T: serde::de::DeserializeOwned>(
        &self,
        address: SocketAddr,
        peer: Peer,
        alpn: Alpn,
        call: Call,
    ) -> Result<T> {
        let client = self.client.as_ref().context("the fleet is laid out")?;
        let target = Target { address: address.to_string(), peer, alpn };
        Ok(self.runtime.block_on(client.call_json(&target, call))?)
    }

    /// The leader of a group, if one is known.
    pub fn leader(&self, group: &str) -> Result<Option<ServerId>> {
        Ok(self.status(group)?.leader)
    }

    /// Waits until every group has all its servers and as many voters as possible.
    pub fn until_complete(&self, patience: Duration) -> Result<()> {
        for (platform, zone, count) in &self.options.groups {
            let group = format!("{platform}.{zone}");
            // An odd number votes.
            let voters = (*count - 1) / 2 * 2 + 1;
            self.until(&group, patience, |status| {
                status.servers.len() == *count && status.voters.len() == voters.min(5)
            })?;
        }
        Ok(())
    }

    /// Stops every process that the fleet has started, including guards and services. An error
    /// names those that did not exit.
    pub fn stop(&mut self) -> Result<()> {
        let names: Vec<String> = self.agents.keys().cloned().collect();
        for name in &names {
            self.signal_agent(name, Signal::TERM);
        }
        for name in &names {
            self.stop_agent(name);
        }
        for (_, _, process) in &mut self.mirrors {
            if let Some(mut process) = process.take() {
                process.stop(Duration::from_secs(5));
            }
        }
        self.stop_hub();
        // Guards stop their services; stop the rest by pid.
        let pids: Vec<i32> = self.processes_left().into_iter().map(|(pid, _)| pid).collect();
        end_all(&pids, Duration::from_secs(10));
        let left: Vec<(i32, String)> =
            self.processes_left().into_iter().filter(|(pid, _)| exists(*pid)).collect();
        ensure!(left.is_empty(), "processes are left: {left:?}");
        Ok(())
    }

    /// Processes whose command line names the fleet's directory, except this one.
    pub fn processes_left(&self) -> Vec<(i32, String)> {
        processes_of(&self.options.dir)
    }

    /// After this call, Ctrl-C, SIGTERM or closing the terminal stops the whole fleet.
    pub fn end_on_signals(&self) {
        use tokio::signal::unix::{SignalKind, signal};
        let dir = self.options.dir.clone();
        self.runtime.spawn(async move {
            let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
            let mut signals: Vec<_> =
                kinds.into_iter().filter_map(|kind| signal(kind).ok()).collect();
            let any = std::future::poll_fn(|context| {
                if signals.iter_mut().any(|signal| signal.poll_recv(context).is_ready()) {
                    std::task::Poll::Ready(())
                } else {
                    std::task::Poll::Pending
                }
            });
            any.await;
            // Not `eprintln`: the terminal may be gone.
            let _ =
                writeln!(std::io::stderr(), "\ninterrupted: stopping every process of the fleet");
            // Guards stop their services; a second pass finds processes started meanwhile.
            for patience in [10, 2] {
                let pids: Vec<i32> = processes_of(&dir).into_iter().map(|(pid, _)| pid).collect();
                end_all(&pids, Duration::from_secs(patience));
            }
            std::process::exit(130);
        });
    }
}

/// Processes that run from the directory, or whose command line names it, except this one.
fn processes_of(dir: &Path) -> Vec<(i32, String)> {
    let needle = dir.display().to_string();
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
    let mut left = Vec::new();
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        if pid == own {
            continue;
        }
        let read = |file: &str| fs::read(entry.path().join(file)).unwrap_or_default();
        let command = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
        let within = fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
        let program = fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe.starts_with(dir));
        let stat = String::from_utf8_lossy(&read("stat")).into_owned();
        let zombie = stat.rsplit(')').next().is_some_and(|rest| rest.trim().starts_with('Z'));
        let ours = command.contains(&needle) && !command.contains("xtask");
        if !zombie && (ours || within || program) {
            left.push((pid, command.trim().to_owned()));
        }
    }
    // Guards before services: they stop the services that they own.
    left.sort_by_key(|(_, command)| !command.contains(" guard "));
    left
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}
