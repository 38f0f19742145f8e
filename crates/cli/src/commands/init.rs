//! `cohort init`: creates everything that a fleet starts with.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use cohort_artifact::{KeyRole, Keys, Lifetimes, Repository};
use cohort_base::{OnPath as _, durable};
use cohort_hub::HubConfig;
use cohort_identity::{Authority, LIFETIME, Peer, PeerName, Role, UnixTime};
use cohort_view::command::{Command, Flag};
use cohort_view::hint::Hint;

use crate::answer::Answer;
use crate::args::{Global, peer_name};
use crate::context::{self, ContextFile};
use crate::failure::{Exit, Failure, OrFail as _};
use crate::layers::{absolute, read_file};
use crate::passphrase;

#[derive(Debug, Args)]
pub(crate) struct InitArgs {
    /// Directory to create; the hub's directory and your context
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Address of the hub for servers and people; repeatable [default: 127.0.0.1 with the port of
    /// --listen]
    #[arg(long = "hub-address", value_name = "HOST:PORT")]
    hub_addresses: Vec<String>,
    /// Listen address of the hub's API (mutual TLS) [default: 0.0.0.0 with the port of the first
    /// --hub-address, or 7418]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
    /// Listen address of the repository (plain HTTP, signed content) [default: 0.0.0.0:7419]
    #[arg(long, value_name = "IP:PORT")]
    repository_listen: Option<SocketAddr>,
    /// Mirror of the repository for joining servers; repeatable
    #[arg(long = "mirror", value_name = "URL")]
    mirrors: Vec<String>,
    /// Label whose value is part of a group's name; repeatable [default: platform, zone]
    #[arg(long = "group-by", value_name = "LABEL")]
    grouping: Vec<String>,
    /// Certificate (PEM) of an authority of your own, such as an intermediate, instead of a new one
    #[arg(long, value_name = "FILE", requires = "authority_key")]
    authority: Option<PathBuf>,
    /// Key (PEM) of --authority
    #[arg(long, value_name = "FILE", requires = "authority")]
    authority_key: Option<PathBuf>,
    /// Directory for the root key, which is written there only: a drive that you take away
    #[arg(long, value_name = "DIR")]
    offline_root: Option<PathBuf>,
    /// Give the root, targets and snapshot keys a passphrase
    #[arg(long)]
    passphrase: bool,
    /// Your name in the audit trail
    #[arg(long, value_name = "NAME", default_value = "operator", value_parser = peer_name)]
    operator: PeerName,
}

pub(crate) async fn run(global: &Global, args: &InitArgs) -> Result<Exit, Failure> {
    let dir = absolute(&args.dir);
    refuse_what_is_there(&dir)?;
    let config = hub_config(&dir, args)?;
    let passphrase = args.passphrase.then(|| passphrase::choose(None)).transpose()?;
    let keys_dir = dir.join("keys");
    let root_dir = args.offline_root.as_deref().map_or_else(|| keys_dir.clone(), absolute);
    if args.offline_root.is_some() && !root_dir.is_dir() {
        let error = format!("{} is not a directory; nothing changed", root_dir.display());
        return Err(Failure::usage(error)
            .hint("mount the drive: the root key would stay on this machine otherwise"));
    }
    let root_key = Keys::path(&root_dir, KeyRole::Root);
    if root_key.exists() {
        let error = format!("{} exists; nothing changed", root_key.display());
        return Err(Failure::new("exists", error)
            .hint("it may be the key of another fleet: choose another directory for this one's"));
    }
    fs::create_dir_all(&dir).on_path("create directory", &dir).or_fail("file")?;
    let now = UnixTime::now();
    let authority = match args.authority.as_ref().zip(args.authority_key.as_ref()) {
        None => Authority::create(&config.authority_dir(), now),
        Some((certificate, key)) => {
            let (certificate, key) = (read_file(certificate)?, read_file(key)?);
            Authority::import(&config.authority_dir(), &certificate, &key, now)
        }
    };
    let authority = authority.or_fail("authority")?;
    let identity = |role, name: &PeerName, folder: &Path| {
        let peer = Peer { role, name: name.clone() };
        let identity = authority.make_identity(&peer, LIFETIME, now).or_fail("authority")?;
        identity.save(folder).or_fail("identity")
    };
    let hub = PeerName::new(config.name.clone()).or_fail("name")?;
    identity(Role::Hub, &hub, &config.identity_dir())?;
    identity(Role::Operator, &args.operator, &dir.join("operator"))?;
    let keys = Keys::create(&keys_dir, &root_dir, passphrase.as_deref()).or_fail("keys")?;
    Repository::create(&config.repository_dir(), &keys, Lifetimes::default())
        .await
        .or_fail("repository")?;
    // Addresses of mirrors may contain secrets.
    let file = dir.join("hub.toml");
    durable::write(&file, hub_toml(&config).as_bytes(), durable::SECRET)
        .on_path("write", &file)
        .or_fail("file")?;
    // Last: a directory with a context is complete.
    context_file(&config).write(&dir)?;
    let made = Answer::Init {
        dir: &dir,
        operator: &args.operator,
        fingerprint: authority.fingerprint(),
        hub: &config.addresses,
    };
    global.output.answer(&made, || next_steps(&dir, &config, args));
    Ok(Exit::Done)
}

fn refuse_what_is_there(dir: &Path) -> Result<(), Failure> {
    let names = ["authority", "keys", "repository", "identity", "operator", "hub.toml"];
    let there = names.iter().find(|name| dir.join(name).exists());
    let shown = dir.display();
    if dir.join(context::FILE).exists() {
        let error = format!("{shown} already contains a fleet; nothing changed");
        return Err(Failure::new("exists", error)
            .hint(format!("to use it: export COHORT_CONTEXT={shown}"))
            .hint(Hint::add("to make another fleet, choose another directory", Flag::Dir)));
    }
    match there {
        None => Ok(()),
        Some(name) => {
            let error = format!("{shown} already contains `{name}`; nothing changed");
            Err(Failure::new("exists", error)
                .hint("if an earlier init was interrupted, nothing in it is in use")
                .hint(Hint::add("remove the directory, or choose another", Flag::Dir)))
        }
    }
}

fn hub_config(dir: &Path, args: &InitArgs) -> Result<HubConfig, Failure> {
    let mut config = HubConfig::new(dir);
    if let Some(listen) = args.listen {
        config.listen = listen;
    } else if let Some(port) =
        args.hub_addresses.first().and_then(|it| it.rsplit_once(':')?.1.parse().ok())
    {
        // Where it is said to be; a hub behind a forwarded port says both.
        config.listen.set_port(port);
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
            return Err(Failure::usage(format!("invalid address `{address}`: expected HOST:PORT")));
        }
    }
    config.validate().map_err(Failure::usage)?;
    Ok(config)
}

/// `hub.toml`. It names no directory: the hub uses the file's, so the fleet can be moved.
fn hub_toml(config: &HubConfig) -> String {
    let list = |texts: &[String]| toml::Value::from(texts.to_vec()).to_string();
    format!(
        "# Configuration of the hub. Every key: docs/operating.md.\n\
         # The hub stores everything next to this file.\n\
         \n\
         listen = \"{}\"\n\
         repository_listen = \"{}\"\n\
         \n\
         # Addresses for servers and people; part of every join token.\n\
         addresses = {}\n\
         \n\
         # Base URLs of mirrors of the repository; empty: the hub itself.\n\
         mirrors = {}\n\
         \n\
         # Labels whose values, joined by dots, name a server's group.\n\
         grouping = {}\n",
        config.listen,
        config.repository_listen,
        list(&config.addresses),
        list(&config.mirrors),
        list(&config.grouping),
    )
}

fn context_file(config: &HubConfig) -> ContextFile {
    ContextFile {
        version: context::VERSION,
        hub: config.addresses.clone(),
        hub_name: config.name.clone(),
        identity: "operator".into(),
        keys: Some("keys".into()),
        repository: Some("repository".into()),
        mirrors: Vec::new(),
        trusted_root: Some("repository/metadata/1.root.json".into()),
    }
}

fn next_steps(dir: &Path, config: &HubConfig, args: &InitArgs) -> String {
    let shown = dir.display();
    let root = match &args.offline_root {
        None => "; keep root.pem offline".to_owned(),
        Some(folder) => format!("; root.pem is only in {}", folder.display()),
    };
    let mut text = format!(
        "Created a fleet in {shown}\n\
         \n\
         \x20 authority/     issues certificates: back it up, keep it secret\n\
         \x20 keys/          sign releases{root}\n\
         \x20 repository/    signed releases\n\
         \x20 identity/      the hub's certificate\n\
         \x20 operator/      your certificate, as operator `{}`\n\
         \x20 hub.toml       the hub's configuration\n\
         \x20 context.toml   configuration of your commands\n\
         \n\
         Next:\n\
         \x20 export COHORT_CONTEXT={shown}\n",
        args.operator,
    );
    let hub = Command::Hub { config: dir.join("hub.toml").display().to_string() };
    let agent = Command::Agent { hub: config.addresses.first().cloned() };
    let publish = Command::Publish { app: None, channel: Some("stable".to_owned()) };
    let token = Command::TokenCreate { role: None, named: false };
    text.push_str(&format!(
        "  {hub}   # leave it running\n\
         \x20 {token} > join.token   # one for each server\n\
         \x20 {agent}   # on the server\n\
         \x20 {publish}\n\
         \x20 {}\n\
         \x20 {}\n",
        Command::AppApply,
        Command::StatusWatch,
    ));
    if args.hub_addresses.is_empty() {
        text.push_str(
            "\nOnly this machine can reach the hub at that address. For others, use \
             --hub-address,\nor change `addresses` in hub.toml and `hub` in context.toml.\n",
        );
    }
    text
}

#[cfg(test)]
#[path = "init_test.rs"]
mod init_test;
