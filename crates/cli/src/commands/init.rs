//! `cohort init`: everything that a fleet begins with.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use cohort_artifact::{Keys, Lifetimes, Repository};
use cohort_base::durable;
use cohort_hub::HubConfig;
use cohort_identity::{Authority, Peer, PeerName, Role, UnixTime, lifetime_of};
use serde::Serialize;

use crate::args::{Global, peer_name};
use crate::context::{self, ContextFile};
use crate::failure::{Exit, Failure};
use crate::layers::absolute;
use crate::output::{Output, say, say_json};

/// What `cohort init` takes.
#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// The folder to make everything in; it becomes the hub's, and your context
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Where servers and people reach the hub; may be repeated [default: 127.0.0.1 and the port of
    /// --listen]
    #[arg(long = "hub-address", value_name = "HOST:PORT")]
    hub_addresses: Vec<String>,
    /// Where the hub listens (mutual TLS) [default: 0.0.0.0:7418]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Where the hub serves the repository (plain HTTP, signed content) [default: 0.0.0.0:7419]
    #[arg(long, value_name = "IP:PORT")]
    repository_listen: Option<SocketAddr>,
    /// A mirror of the repository that joining servers are told; may be repeated
    #[arg(long = "mirror", value_name = "URL")]
    mirrors: Vec<String>,
    /// A label whose value is part of a group's name; may be repeated [default: platform, zone]
    #[arg(long = "group-by", value_name = "LABEL")]
    grouping: Vec<String>,
    /// Your name, in the audit trail
    #[arg(long, value_name = "NAME", default_value = "operator", value_parser = peer_name)]
    operator: PeerName,
}

/// What was made, for programs.
#[derive(Debug, Serialize)]
struct Made {
    dir: PathBuf,
    operator: PeerName,
    fingerprint: String,
    hub: Vec<String>,
}

/// Makes it.
pub(crate) async fn run(global: &Global, args: &InitArgs) -> Result<Exit, Failure> {
    let dir = absolute(&args.dir);
    refuse_what_is_there(&dir)?;
    let config = hub_config(&dir, args)?;
    make_folder(&dir)?;
    let now = UnixTime::now();
    let authority = Authority::create(&config.authority_dir(), now)
        .map_err(|error| Failure::of("authority", &error))?;
    let identity = |role, name: &PeerName, folder: &Path| {
        let peer = Peer { role, name: name.clone() };
        let identity = authority
            .make_identity(&peer, lifetime_of(role), now)
            .map_err(|error| Failure::of("authority", &error))?;
        identity.save(folder).map_err(|error| Failure::of("identity", &error))
    };
    let hub = PeerName::new(config.name.clone()).map_err(|error| Failure::of("name", &error))?;
    identity(Role::Hub, &hub, &config.identity_dir())?;
    identity(Role::Operator, &args.operator, &dir.join("operator"))?;
    let keys = Keys::create(&dir.join("keys")).map_err(|error| Failure::of("keys", &error))?;
    Repository::create(&config.repository_dir(), &keys, Lifetimes::default())
        .await
        .map_err(|error| Failure::of("repository", &error))?;
    write(&dir.join("hub.toml"), &hub_toml(&config))?;
    // Last: whoever finds it finds everything else as well.
    write(&dir.join(context::FILE), &context_toml(&config)?)?;
    let made = Made {
        operator: args.operator.clone(),
        fingerprint: authority.fingerprint(),
        hub: config.addresses,
        dir,
    };
    match global.output {
        Output::Json => say_json(&made),
        Output::Text => say(&next_steps(&made, args.hub_addresses.is_empty())),
    }
    Ok(Exit::Done)
}

fn refuse_what_is_there(dir: &Path) -> Result<(), Failure> {
    let names = ["authority", "keys", "repository", "identity", "operator", "hub.toml"];
    let there = names.iter().find(|name| dir.join(name).exists());
    let shown = dir.display();
    if dir.join(context::FILE).exists() {
        let error = format!("{shown} holds a fleet already: nothing was changed");
        return Err(Failure::new("exists", error)
            .hint(format!("to use it: export COHORT_CONTEXT={shown}"))
            .hint("choose another folder with --dir to make another fleet"));
    }
    match there {
        None => Ok(()),
        Some(name) => {
            let error = format!("{shown} holds `{name}` already: nothing was changed");
            Err(Failure::new("exists", error)
                .hint("if an earlier `cohort init` was interrupted there, nothing in it is in use")
                .hint("remove the folder, or choose another with --dir"))
        }
    }
}

fn hub_config(dir: &Path, args: &InitArgs) -> Result<HubConfig, Failure> {
    let mut config = HubConfig::new(dir);
    if let Some(listen) = args.listen {
        config.listen = listen;
    }
    if let Some(listen) = args.repository_listen {
        config.repository_listen = listen;
    }
    if !args.grouping.is_empty() {
        config.grouping.clone_from(&args.grouping);
    }
    config.mirrors.clone_from(&args.mirrors);
    config.addresses.clone_from(&args.hub_addresses);
    if config.addresses.is_empty() {
        config.addresses = vec![format!("127.0.0.1:{}", config.listen.port())];
    }
    for address in &config.addresses {
        let port = address.rsplit_once(':').filter(|(host, _)| !host.is_empty());
        if port.is_none_or(|(_, port)| port.parse::<u16>().is_err()) {
            return Err(Failure::usage(format!("`{address}` is not of the form HOST:PORT")));
        }
    }
    config.validate().map_err(Failure::usage)?;
    Ok(config)
}

fn make_folder(dir: &Path) -> Result<(), Failure> {
    fs::create_dir_all(dir).map_err(|error| {
        Failure::new("file", format!("folder {} cannot be made: {error}", dir.display()))
    })
}

fn write(path: &Path, text: &str) -> Result<(), Failure> {
    durable::write(path, text.as_bytes(), durable::READABLE).map_err(|error| {
        Failure::new("file", format!("{} cannot be written: {error}", path.display()))
    })
}

/// `hub.toml`. It names no folder: the hub uses the one that the file is in, so that it can move.
fn hub_toml(config: &HubConfig) -> String {
    let list = |texts: &[String]| toml::Value::from(texts.to_vec()).to_string();
    format!(
        "# The hub: `cohort hub --config` this file. Every key: docs/operating.md.\n\
         # Everything that it keeps lies beside this file.\n\
         \n\
         listen = \"{}\"\n\
         repository_listen = \"{}\"\n\
         \n\
         # Where servers and people reach it; written into join tokens.\n\
         addresses = {}\n\
         \n\
         # Base URLs of mirrors of the repository; empty: the hub's own.\n\
         mirrors = {}\n\
         \n\
         # The labels whose values, joined by dots, name a server's group.\n\
         grouping = {}\n",
        config.listen,
        config.repository_listen,
        list(&config.addresses),
        list(&config.mirrors),
        list(&config.grouping),
    )
}

fn context_toml(config: &HubConfig) -> Result<String, Failure> {
    let file = ContextFile {
        hub: config.addresses.clone(),
        hub_name: config.name.clone(),
        identity: "operator".into(),
        keys: Some("keys".into()),
        repository: Some("repository".into()),
        mirrors: Vec::new(),
        trusted_root: Some("repository/metadata/1.root.json".into()),
    };
    let text = toml::to_string(&file).map_err(|error| Failure::of("file", &error))?;
    Ok(format!("# Who you are and where the hub is. Relative paths start here.\n{text}"))
}

fn next_steps(made: &Made, local_only: bool) -> String {
    let dir = made.dir.display();
    let mut text = format!(
        "Made a fleet in {dir}\n\
         \n\
         \x20 authority/     issues certificates: back it up, show it to nobody\n\
         \x20 keys/          sign releases; keep root.pem away from machines on a network\n\
         \x20 repository/    signed releases\n\
         \x20 identity/      the hub's certificate\n\
         \x20 operator/      your certificate, as operator `{}`\n\
         \x20 hub.toml       the hub's configuration\n\
         \x20 context.toml   what your commands use\n\
         \n\
         Next:\n\
         \x20 export COHORT_CONTEXT={dir}\n\
         \x20 cohort hub --config {dir}/hub.toml        # leave it running\n\
         \x20 cohort token create > join.token          # one for each server\n\
         \x20 cohort agent --server web-1 --hub {} --join-token-file join.token   # there\n\
         \x20 cohort publish ./dist --app web --version 1.0.0 --channel stable\n\
         \x20 cohort app apply -f web.toml\n\
         \x20 cohort status --watch\n",
        made.operator,
        made.hub.first().map_or("HOST:7418", String::as_str),
    );
    if local_only {
        text.push_str(
            "\nOnly this machine can reach the hub at that address. For others, say\n\
             --hub-address HOST:7418, or change `addresses` in hub.toml and `hub` in context.toml.\n",
        );
    }
    text
}
