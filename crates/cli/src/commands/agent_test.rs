use clap::Parser as _;

use super::configuration;
use crate::agent_keys::own_platform;
use crate::args::{Cli, Command};

fn parse(args: &[&str]) -> Result<cohort_agent::config::AgentConfig, crate::failure::Failure> {
    let cli = Cli::try_parse_from([&["cohort", "agent"], args].concat()).unwrap();
    let Command::Agent(args) = cli.command else { panic!("the agent") };
    configuration(&args, |_| None)
}

#[test]
fn every_flag_reaches_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    std::fs::write(&file, "server = \"web-1\"\nrack = \"r1\"\n").unwrap();
    let config = parse(&[
        "--config",
        file.to_str().unwrap(),
        "--server",
        "web-2",
        "--data-dir",
        "/d",
        "--install-dir",
        "/i",
        "--listen",
        "0.0.0.0:1",
        "--advertise",
        "web-2:1",
        "--probe-listen",
        "127.0.0.1:2",
        "--hub",
        "h:1",
        "--hub",
        "h:2",
        "--join-token-file",
        "/t",
        "--platform",
        "intel",
        "--label",
        "zone=zone-a",
        "--mirror",
        "http://m/",
        "--service-port",
        "80",
        "--service-user",
        "web",
        "--poll-interval",
        "2s",
        "--ready-without-orders-after",
        "3s",
    ])
    .unwrap();
    assert_eq!(config.server.as_str(), "web-2");
    assert_eq!(config.rack.as_deref(), Some("r1"), "from the file");
    assert_eq!((config.hub.len(), config.mirrors.len(), config.labels.len()), (2, 1, 1));
    assert_eq!(config.service_user.as_deref(), Some("web"));
    assert_eq!(config.poll_interval.ms, 2000);
    assert_eq!(config.ready_without_orders_after.ms, 3000);
    assert_eq!(config.advertise.as_deref(), Some("web-2:1"));
}

#[test]
fn the_platform_is_this_machines_unless_said_otherwise() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    std::fs::write(&file, "server = \"web-1\"\n").unwrap();
    let config = parse(&["--config", file.to_str().unwrap()]).unwrap();
    assert_eq!(config.platform.as_str(), own_platform());
}

#[test]
fn a_configuration_that_was_named_must_exist() {
    let failure = parse(&["--config", "/nonexistent/agent.toml"]).unwrap_err();
    assert_eq!(failure.error, "/nonexistent/agent.toml does not exist");
}
