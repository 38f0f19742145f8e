//! A fleet's files, before anything runs.

use std::collections::BTreeMap;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result};
use cohort_identity::Identity;
use cohort_wire::http::Client;
use cohort_wire::tls::IdentitySlot;

use super::{Agent, Fleet, FleetOptions};
use crate::ports::Ports;

impl Fleet {
    /// Creates directories and keys; starts nothing. Everything will listen on the loopback
    /// interface.
    pub fn lay_out(options: FleetOptions) -> Result<Fleet> {
        Fleet::lay_out_at(options, Ipv4Addr::LOCALHOST)
    }

    /// Like [`Fleet::lay_out`]; everything will listen on `ip`.
    pub fn lay_out_at(options: FleetOptions, ip: Ipv4Addr) -> Result<Fleet> {
        let local = |port: u16| SocketAddr::from((ip, port));
        fs::create_dir_all(options.dir.join("logs"))?;
        let mut ports = Ports::new();
        let hub_address = local(ports.take()?);
        let repository_address = local(ports.take()?);
        let mut mirrors = Vec::new();
        for index in 0..options.mirrors {
            let folder = options.dir.join(format!("mirror-{}", index + 1));
            mirrors.push((folder, local(ports.take()?), None));
        }
        let mut agents = BTreeMap::new();
        for (platform, zone, count) in &options.groups {
            for number in 1..=*count {
                let short = zone.rsplit('-').next().unwrap_or(zone);
                let server = format!("{platform}-{short}-{number:02}");
                let group = format!("{platform}.{zone}");
                let agent = new_agent(&options, &mut ports, ip, &server, &group)?;
                agents.insert(server, agent);
            }
        }
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let mut fleet = Fleet {
            options,
            ports,
            hub: None,
            hub_address,
            mirrors,
            agents,
            runtime,
            client: None,
        };
        let mut args = vec![
            "init".to_owned(),
            "--dir".to_owned(),
            fleet.context_dir().display().to_string(),
            "--listen".to_owned(),
            hub_address.to_string(),
            "--hub-address".to_owned(),
            hub_address.to_string(),
            "--repository-listen".to_owned(),
            repository_address.to_string(),
        ];
        for (_, address, _) in &fleet.mirrors {
            args.push("--mirror".to_owned());
            args.push(format!("http://{address}/"));
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        fleet.run(&args)?;
        let identity = Identity::load(&fleet.context_dir().join("operator"))?;
        fleet.client = Some(Client::new(IdentitySlot::new(identity)));
        Ok(fleet)
    }

    /// Creates an agent's directory, token and configuration.
    pub(super) fn make_agent(&self, name: &str) -> Result<()> {
        let agent = &self.agents[name];
        fs::create_dir_all(&agent.dir)?;
        let token = self.run(&["token", "create", "--name", name])?;
        let token_file = agent.dir.join("token");
        fs::write(&token_file, token.trim())?;
        let (platform, zone) =
            agent.group.split_once('.').context("a group's name is platform.zone")?;
        // Programs of a trial stay in its private directory, which other users cannot enter.
        let says = self.options.agent_toml.contains("service_user");
        let user = if is_root()? && !says { "service_user = \"root\"\n" } else { "" };
        let text = format!(
            "{user}server = {name:?}\ndata_dir = {:?}\ninstall_dir = {:?}\nlisten = \"{}\"\n\
             probe_listen = \"{}\"\nhub = [\"{}\"]\njoin_token_file = {:?}\n\
             platform = {platform:?}\nservice_port = {}\npoll_interval = \"500ms\"\n{}\n\
             [labels]\nzone = {zone:?}\n",
            agent.dir.join("data"),
            agent.dir.join("apps"),
            agent.address,
            agent.probe,
            self.hub_address,
            token_file,
            agent.service.port(),
            self.options.agent_toml,
        );
        fs::write(agent.dir.join("agent.toml"), text)?;
        Ok(())
    }

    /// Adds lines to the configuration of every agent created from now on.
    pub fn add_agent_toml(&mut self, lines: &str) {
        self.options.agent_toml.push('\n');
        self.options.agent_toml.push_str(lines);
    }

    /// Moves an agent that has not started yet to another address, and sets a prefix for its
    /// command line.
    pub fn place(&mut self, server: &str, ip: Ipv4Addr, prefix: &[String]) {
        if let Some(agent) = self.agents.get_mut(server) {
            for address in [&mut agent.address, &mut agent.probe, &mut agent.service] {
                *address = SocketAddr::from((ip, address.port()));
            }
            agent.prefix = prefix.to_vec();
        }
    }

    /// Adds a server to a group and starts its agent, which joins.
    pub fn add_agent(&mut self, server: &str, group: &str) -> Result<()> {
        let (options, ip) = (&self.options, Ipv4Addr::LOCALHOST);
        let agent = new_agent(options, &mut self.ports, ip, server, group)?;
        self.agents.insert(server.to_owned(), agent);
        self.make_agent(server)?;
        self.start_agent(server)
    }
}

fn new_agent(
    options: &FleetOptions,
    ports: &mut Ports,
    ip: Ipv4Addr,
    server: &str,
    group: &str,
) -> Result<Agent> {
    let mut free = || Ok::<_, anyhow::Error>(SocketAddr::from((ip, ports.take()?)));
    Ok(Agent {
        server: server.to_owned(),
        group: group.to_owned(),
        address: free()?,
        probe: free()?,
        service: free()?,
        dir: options.dir.join("servers").join(server),
        prefix: Vec::new(),
        process: None,
    })
}

/// A process's directory there belongs to its effective user.
fn is_root() -> Result<bool> {
    Ok(fs::metadata("/proc/self")?.uid() == 0)
}
