//! `cohort hub`: run the hub.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use cohort_hub::HubConfig;
use toml::Value;

use crate::commands::{SERVER_THREADS, daemon_runtime, stopping};
use crate::failure::{Exit, Failure};
use crate::hub_keys::{FILE, LAYOUT};
use crate::layers::{Layers, absolute, list_flag, path_flag, text_flag};

/// What `cohort hub` takes. Flags win over COHORT_HUB_*, drop-ins and the file.
#[derive(Debug, Args)]
pub(crate) struct HubArgs {
    /// The configuration; drop-ins in hub.d beside it [default: hub.toml in the current folder,
    /// else /etc/cohort/hub.toml]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the registry and tokens are, and all else that no other key names [default: the
    /// folder of the configuration]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the API listens (mutual TLS) [default: 0.0.0.0:7418]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Where the repository, probes and metrics are served (plain HTTP) [default: 0.0.0.0:7419]
    #[arg(long, value_name = "IP:PORT")]
    repository_listen: Option<SocketAddr>,
    /// The repository's folder
    #[arg(long, value_name = "DIR")]
    repository_dir: Option<PathBuf>,
    /// A bucket that gets a copy of the repository, such as s3://BUCKET/PREFIX
    #[arg(long, value_name = "URL")]
    repository_bucket: Option<String>,
    /// Where servers reach the hub; written into join tokens; may be repeated
    #[arg(long = "address", value_name = "HOST:PORT")]
    addresses: Vec<String>,
    /// A mirror that joining servers are told; may be repeated
    #[arg(long = "mirror", value_name = "URL")]
    mirrors: Vec<String>,
    /// No other hub of this fleet lives: this one, restored from a backup, may begin groups again
    #[arg(long)]
    confirm_restored: bool,
}

/// Runs until SIGTERM or SIGINT.
pub(crate) fn run(args: &HubArgs) -> Result<Exit, Failure> {
    let config = configuration(args)?;
    daemon_runtime(SERVER_THREADS)?.block_on(async {
        let stop = stopping()?;
        cohort_hub::run(config, stop).await.map_err(|error| Failure::of("hub", &error))
    })?;
    Ok(Exit::Done)
}

/// The configuration of a hub, without flags: for commands that work on its folders.
pub(crate) fn read_config(file: Option<&Path>) -> Result<HubConfig, Failure> {
    finish(read_layers(file)?)
}

fn configuration(args: &HubArgs) -> Result<HubConfig, Failure> {
    let mut layers = read_layers(args.config.as_deref())?;
    layers.add_flag("data_dir", path_flag(args.data_dir.as_ref()));
    layers.add_flag("listen", text_flag(args.listen.as_ref()));
    layers.add_flag("repository_listen", text_flag(args.repository_listen.as_ref()));
    layers.add_flag("repository_dir", path_flag(args.repository_dir.as_ref()));
    layers.add_flag("repository_bucket", text_flag(args.repository_bucket.as_ref()));
    layers.add_flag("addresses", list_flag(&args.addresses));
    layers.add_flag("mirrors", list_flag(&args.mirrors));
    layers.add_flag("confirm_restored", args.confirm_restored.then_some(Value::Boolean(true)));
    finish(layers)
}

fn read_layers(given: Option<&Path>) -> Result<Layers, Failure> {
    let here = Path::new("hub.toml");
    let file = match given {
        Some(file) if !file.exists() => {
            let error = format!("{} does not exist", file.display());
            return Err(Failure::new("file", error)
                .hint("cohort init --dir DIR makes one")
                .exit(Exit::Usage));
        }
        Some(file) => file,
        None if here.exists() => here,
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
