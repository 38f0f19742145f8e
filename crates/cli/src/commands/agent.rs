//! `cohort agent`: run this server's agent, or show its configuration.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand};
use cohort_agent::AgentError;
use cohort_agent::config::{AgentConfig, Reload};
use cohort_artifact::Mirror;
use cohort_artifact::client::{ClientLimits, MirrorClient};
use cohort_base::{Cause, chain};
use cohort_core::ids::{Platform, ServerId};
use cohort_host::Lack;
use cohort_view::table::{cell, render, table};
use cohort_wire::agent::LACKING;
use serde::Serialize;

use crate::agent_keys::{FILE, LAYOUT, own_platform};
use crate::answer::Answer;
use crate::args::Global;
use crate::commands::{AGENT_THREADS, daemon_runtime, once, stopping};
use crate::failure::{Exit, Failure, OrFail as _};
use crate::layers::{Layers, Setting, parse_pair};
use crate::output::look;

/// Longest wait for the agent's own answer.
const PROBE_MAX: Duration = Duration::from_secs(3);

/// Longest such answer, in bytes: a few names.
const LACKING_BYTES_MAX: u64 = 4096;

/// Flags override COHORT_* variables, drop-ins and the file.
#[derive(Debug, Clone, Args, Serialize)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct AgentArgs {
    #[command(subcommand)]
    #[serde(skip)]
    command: Option<AgentCommand>,
    /// Configuration file; drop-ins are in agent.d next to it [default: /etc/cohort/agent.toml]
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Server name, unique in the fleet
    #[arg(long)]
    server: Option<ServerId>,
    /// Directory for the agent's data [default: /var/lib/cohort]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Directory to install apps in [default: /opt/cohort]
    #[arg(long, value_name = "DIR")]
    install_dir: Option<PathBuf>,
    /// Listen address for agents and people (mutual TLS) [default: 0.0.0.0:7417]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// Address that others use to reach it [default: same as --listen]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Listen address for probes and metrics (plain HTTP) [default: 127.0.0.1:7416]
    #[arg(long, value_name = "IP:PORT")]
    probe_listen: Option<String>,
    /// Hub API address; repeatable
    #[arg(long, value_name = "HOST:PORT")]
    hub: Vec<String>,
    /// File with the join token, for the first start
    #[arg(long, value_name = "FILE")]
    join_token_file: Option<PathBuf>,
    /// Platform of the artifacts to run [default: this machine's]
    #[arg(long)]
    platform: Option<Platform>,
    /// Label, such as zone=zone-a; repeatable
    #[arg(long = "label", value_name = "NAME=TEXT", value_parser = parse_pair)]
    labels: Vec<(String, String)>,
    /// Failure domain of this server
    #[arg(long)]
    rack: Option<String>,
    /// Mirror of the repository, closest first; repeatable
    #[arg(long = "mirror", value_name = "URL")]
    mirrors: Vec<String>,
    /// Port of the service: {port} in commands, and the default of checks
    #[arg(long, value_name = "PORT")]
    service_port: Option<u16>,
    /// User for services, hooks and checks: NAME, UID or UID:GID [default: the agent's user,
    /// except root]
    #[arg(long, value_name = "USER")]
    service_user: Option<String>,
    /// Interval at which a leader checks for new releases [default: 5s]
    #[arg(long, value_name = "DURATION")]
    poll_interval: Option<String>,
    /// Without orders from its group, serve with what is installed after this time [default: 1m]
    #[arg(long, value_name = "DURATION")]
    ready_without_orders_after: Option<String>,
}

#[derive(Debug, Clone, Subcommand)]
enum AgentCommand {
    /// Show the configuration, where each value comes from, and what this machine lacks
    Show(ShowArgs),
}

#[derive(Debug, Clone, Args)]
struct ShowArgs {
    /// Configuration file, as for the agent [default: /etc/cohort/agent.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs until SIGTERM or SIGINT; transfers leadership before it exits.
pub(crate) fn run(global: &Global, args: &AgentArgs) -> Result<Exit, Failure> {
    if let Some(AgentCommand::Show(ShowArgs { config })) = &args.command {
        let args = AgentArgs { config: config.clone(), ..args.clone() };
        return once(show(global, &args));
    }
    cohort_host::confine::keep_descriptors();
    let config = configuration(args, |name| std::env::var(name).ok())?;
    let again = args.clone();
    let reload: Reload = Arc::new(move || {
        let read = configuration(&again, |name| std::env::var(name).ok());
        read.map_err(|failure| failure.error)
    });
    daemon_runtime(AGENT_THREADS)?.block_on(async {
        let stop = stopping()?;
        let ended = cohort_agent::run(config, reload, stop).await;
        // No restart helps: systemd reads the exit code.
        let wrong = matches!(ended, Err(AgentError::Config { .. }));
        let failed = |failure: Failure| if wrong { failure.exit(Exit::Usage) } else { failure };
        ended.or_fail("agent").map_err(failed)
    })?;
    Ok(Exit::Done)
}

/// What the agent would start with now, and what the running one says of its machine.
async fn show(global: &Global, args: &AgentArgs) -> Result<Exit, Failure> {
    let layers = layers(args, |name| std::env::var(name).ok())?;
    let settings = layers.settings();
    let config: AgentConfig = layers.finish()?;
    let address = &config.probe_listen;
    let lacks = lacking(address).await.map_err(|error| chain(&*error));
    let answer = Answer::AgentShow { settings: &settings, lacks: lacks.as_deref().ok() };
    global.output.answer(&answer, || shown(&settings, lacks.as_deref(), address));
    Ok(Exit::Done)
}

async fn lacking(address: &str) -> Result<Vec<Lack>, Cause> {
    let limits = ClientLimits { file: PROBE_MAX, ..ClientLimits::default() };
    let port = format!("http://{address}").parse::<Mirror>()?;
    let path = LACKING.trim_start_matches('/');
    let answer = MirrorClient::new(limits)?.fetch(&port, path, LACKING_BYTES_MAX).await?;
    Ok(serde_json::from_slice(&answer)?)
}

fn shown(settings: &[Setting], lacks: Result<&[Lack], &String>, address: &str) -> String {
    let mut table = table(look(), &["KEY", "VALUE", "FROM"]);
    for Setting { key, value, from } in settings {
        table.add_row([cell(key), cell(value), cell(from)]);
    }
    let mut text = format!("{}\nall else has its default\n", render(&table));
    match lacks {
        Ok([]) => text.push_str("\nthis machine lacks nothing to confine releases\n"),
        Ok(lacks) => {
            text.push_str("\nthis machine lacks:\n");
            lacks.iter().for_each(|lack| text.push_str(&format!("  {lack}\n")));
        }
        Err(error) => text.push_str(&format!(
            "\nno agent answers at {address}, so what this machine lacks is not known: {error}\n"
        )),
    }
    text
}

fn configuration(
    args: &AgentArgs,
    env: impl Fn(&str) -> Option<String>,
) -> Result<AgentConfig, Failure> {
    layers(args, env)?.finish()
}

fn layers(args: &AgentArgs, env: impl Fn(&str) -> Option<String>) -> Result<Layers, Failure> {
    if let Some(file) = args.config.as_ref().filter(|file| !file.exists()) {
        let error = format!("{} does not exist", file.display());
        return Err(Failure::new("file", error).exit(Exit::Usage));
    }
    let mut layers = Layers::new(LAYOUT);
    layers.add_file_and_drop_ins(args.config.as_deref().unwrap_or(Path::new(FILE)))?;
    layers.add_env(env)?;
    layers.add_flags(args);
    layers.add_default("platform", own_platform().into());
    Ok(layers)
}

#[cfg(test)]
#[path = "agent_test.rs"]
mod agent_test;
