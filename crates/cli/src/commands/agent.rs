//! `cohort agent`: run this server's agent.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use cohort_agent::config::{AgentConfig, Reload};
use cohort_core::ids::{Platform, ServerId};
use serde::Serialize;

use crate::agent_keys::{FILE, LAYOUT, own_platform};
use crate::commands::{AGENT_THREADS, daemon_runtime, stopping};
use crate::failure::{Exit, Failure, OrFail as _};
use crate::layers::{Layers, parse_pair};

/// Flags override COHORT_* variables, drop-ins and the file.
#[derive(Debug, Clone, Args, Serialize)]
pub(crate) struct AgentArgs {
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

/// Runs until SIGTERM or SIGINT; transfers leadership before it exits.
pub(crate) fn run(args: &AgentArgs) -> Result<Exit, Failure> {
    let config = configuration(args, |name| std::env::var(name).ok())?;
    let again = args.clone();
    let reload: Reload = Arc::new(move || {
        let read = configuration(&again, |name| std::env::var(name).ok());
        read.map_err(|failure| failure.error)
    });
    daemon_runtime(AGENT_THREADS)?.block_on(async {
        let stop = stopping()?;
        cohort_agent::run(config, reload, stop).await.or_fail("agent")
    })?;
    Ok(Exit::Done)
}

fn configuration(
    args: &AgentArgs,
    env: impl Fn(&str) -> Option<String>,
) -> Result<AgentConfig, Failure> {
    if let Some(file) = args.config.as_ref().filter(|file| !file.exists()) {
        let error = format!("{} does not exist", file.display());
        return Err(Failure::new("file", error).exit(Exit::Usage));
    }
    let mut layers = Layers::new(LAYOUT);
    layers.add_file_and_drop_ins(args.config.as_deref().unwrap_or(Path::new(FILE)))?;
    layers.add_env(env)?;
    layers.add_flags(args);
    layers.add_default("platform", own_platform().into());
    layers.finish()
}

#[cfg(test)]
#[path = "agent_test.rs"]
mod agent_test;
