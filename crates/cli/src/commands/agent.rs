//! `cohort agent`: run this server's agent.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use cohort_agent::config::{AgentConfig, Reload};
use cohort_core::ids::{Platform, ServerId};
use toml::Value;

use crate::agent_keys::{FILE, LAYOUT, own_platform};
use crate::commands::{AGENT_THREADS, daemon_runtime, stopping};
use crate::failure::{Exit, Failure};
use crate::layers::{Layers, list_flag, map_flag, parse_pair, path_flag, text_flag};

/// What `cohort agent` takes. Flags win over COHORT_*, drop-ins and the file.
#[derive(Debug, Clone, Args)]
pub(crate) struct AgentArgs {
    /// The configuration; drop-ins in agent.d beside it [default: /etc/cohort/agent.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// This server's name, unique in the fleet
    #[arg(long)]
    server: Option<ServerId>,
    /// Everything that the agent keeps [default: /var/lib/cohort]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where apps are installed [default: /opt/cohort]
    #[arg(long, value_name = "DIR")]
    install_dir: Option<PathBuf>,
    /// Where agents and people reach it (mutual TLS) [default: 0.0.0.0:7417]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<String>,
    /// The address that others are told [default: as --listen]
    #[arg(long, value_name = "HOST:PORT")]
    advertise: Option<String>,
    /// Plain port for probes and metrics [default: 127.0.0.1:7416]
    #[arg(long, value_name = "IP:PORT")]
    probe_listen: Option<String>,
    /// The hub's API; may be repeated
    #[arg(long, value_name = "HOST:PORT")]
    hub: Vec<String>,
    /// A file with the join token; needed at the first start only
    #[arg(long, value_name = "FILE")]
    join_token_file: Option<PathBuf>,
    /// The platform whose artifacts it runs [default: this machine's]
    #[arg(long)]
    platform: Option<Platform>,
    /// What else is known of it, such as zone=zone-a; may be repeated
    #[arg(long = "label", value_name = "NAME=TEXT", value_parser = parse_pair)]
    labels: Vec<(String, String)>,
    /// Its failure domain
    #[arg(long)]
    rack: Option<String>,
    /// A mirror of the repository, closest first; may be repeated
    #[arg(long = "mirror", value_name = "URL")]
    mirrors: Vec<String>,
    /// The port of the service: {port} in commands and checks
    #[arg(long, value_name = "PORT")]
    service_port: Option<u16>,
    /// As whom services, hooks and checks run: NAME, UID or UID:GID [default: the agent's own user]
    #[arg(long, value_name = "USER")]
    service_user: Option<String>,
    /// How often the leader looks for a new release [default: 5s]
    #[arg(long, value_name = "DURATION")]
    poll_interval: Option<String>,
    /// How long it waits for its group before it takes traffic with what it runs [default: 1m]
    #[arg(long, value_name = "DURATION")]
    ready_without_orders_after: Option<String>,
}

/// Runs until SIGTERM or SIGINT; hands leadership over before it ends.
pub(crate) fn run(args: &AgentArgs) -> Result<Exit, Failure> {
    let mut config = configuration(args, |name| std::env::var(name).ok())?;
    let again = args.clone();
    config.reload = Some(Reload(Arc::new(move || {
        let read = configuration(&again, |name| std::env::var(name).ok());
        read.map_err(|failure| failure.error)
    })));
    daemon_runtime(AGENT_THREADS)?.block_on(async {
        let stop = stopping()?;
        cohort_agent::run(config, stop).await.map_err(|error| Failure::of("agent", &error))
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
    layers.add_flag("server", text_flag(args.server.as_ref()));
    layers.add_flag("data_dir", path_flag(args.data_dir.as_ref()));
    layers.add_flag("install_dir", path_flag(args.install_dir.as_ref()));
    layers.add_flag("listen", text_flag(args.listen.as_ref()));
    layers.add_flag("advertise", text_flag(args.advertise.as_ref()));
    layers.add_flag("probe_listen", text_flag(args.probe_listen.as_ref()));
    layers.add_flag("hub", list_flag(&args.hub));
    layers.add_flag("join_token_file", path_flag(args.join_token_file.as_ref()));
    layers.add_flag("platform", text_flag(args.platform.as_ref()));
    layers.add_flag("labels", map_flag(&args.labels));
    layers.add_flag("rack", text_flag(args.rack.as_ref()));
    layers.add_flag("mirrors", list_flag(&args.mirrors));
    let port = args.service_port.map(|port| Value::Integer(i64::from(port)));
    layers.add_flag("service_port", port);
    layers.add_flag("service_user", text_flag(args.service_user.as_ref()));
    layers.add_flag("poll_interval", text_flag(args.poll_interval.as_ref()));
    let ready = text_flag(args.ready_without_orders_after.as_ref());
    layers.add_flag("ready_without_orders_after", ready);
    layers.add_default("platform", own_platform().into());
    layers.finish()
}

#[cfg(test)]
#[path = "agent_test.rs"]
mod agent_test;
