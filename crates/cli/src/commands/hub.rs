//! `cohort hub`: run the hub.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use cohort_hub::HubConfig;
use cohort_view::command::Command;
use cohort_view::hint::Hint;
use serde::Serialize;

use crate::commands::{SERVER_THREADS, daemon_runtime, stopping};
use crate::context::is_own;
use crate::failure::{Exit, Failure, OrFail as _};
use crate::hub_keys::{FILE, LAYOUT};
use crate::layers::{Layers, absolute};

/// Flags override COHORT_HUB_* variables, drop-ins and the file.
#[derive(Debug, Args, Serialize)]
pub(crate) struct HubArgs {
    /// Configuration file; drop-ins are in hub.d next to it [default: hub.toml in the current
    /// directory, else /etc/cohort/hub.toml]
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Directory for the registry, tokens and everything else without its own key [default: the
    /// directory of the configuration]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Listen address of the API (mutual TLS) [default: 0.0.0.0:7418]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Listen address for repository, probes and metrics (plain HTTP) [default: 0.0.0.0:7419]
    #[arg(long, value_name = "IP:PORT")]
    repository_listen: Option<SocketAddr>,
    /// Repository directory
    #[arg(long, value_name = "DIR")]
    repository_dir: Option<PathBuf>,
    /// Bucket to copy the repository to, such as s3://BUCKET/PREFIX
    #[arg(long, value_name = "URL")]
    repository_bucket: Option<String>,
    /// Address of the hub for servers, part of every join token; repeatable
    #[arg(long = "address", value_name = "HOST:PORT")]
    addresses: Vec<String>,
    /// Mirror for joining servers; repeatable
    #[arg(long = "mirror", value_name = "URL")]
    mirrors: Vec<String>,
    /// Confirm that no other hub of this fleet is running: this one, restored from a backup, may
    /// bootstrap groups again
    #[arg(long)]
    confirm_restored: bool,
}

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(args: &HubArgs) -> Result<Exit, Failure> {
    let config = configuration(args)?;
    cohort_wire::limits::raise_files();
    daemon_runtime(SERVER_THREADS)?.block_on(async {
        let stop = stopping()?;
        cohort_hub::run(config, stop).await.or_fail("hub")
    })?;
    Ok(Exit::Done)
}

/// The configuration without flags, for commands that work on the hub's directories.
pub(crate) fn read_config(file: Option<&Path>) -> Result<HubConfig, Failure> {
    finish(read_layers(file)?)
}

fn configuration(args: &HubArgs) -> Result<HubConfig, Failure> {
    let mut layers = read_layers(args.config.as_deref())?;
    layers.add_flags(args);
    finish(layers)
}

fn read_layers(given: Option<&Path>) -> Result<Layers, Failure> {
    let here = Path::new("hub.toml");
    let file = match given {
        Some(file) if !file.exists() => {
            let error = format!("{} does not exist", file.display());
            return Err(Failure::new("file", error)
                .hint(Hint::run_to("make one", Command::Init))
                .exit(Exit::Usage));
        }
        Some(file) => file,
        None if is_own(here) => here,
        None => Path::new(FILE),
    };
    let mut layers = Layers::new(LAYOUT);
    layers.add_file_and_drop_ins(file)?;
    layers.add_env(|name| std::env::var(name).ok())?;
    if file.exists()
        && let Some(folder) = absolute(file).parent()
    {
        layers.add_default("data_dir", folder.to_string_lossy().into_owned().into());
    }
    Ok(layers)
}

fn finish(layers: Layers) -> Result<HubConfig, Failure> {
    let config: HubConfig = layers.finish()?;
    config.validate().map_err(|error| Failure::new("configuration", error).exit(Exit::Usage))?;
    Ok(config)
}
