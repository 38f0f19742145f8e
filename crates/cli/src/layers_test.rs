use std::fs;
use std::path::Path;

use cohort_agent::config::AgentConfig;
use cohort_hub::HubConfig;
use cohort_view::hint::Hint;
use toml::Value;

use super::{Layers, Layout};
use crate::failure::{Exit, Failure};
use crate::{agent_keys, hub_keys};

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn agent(dir: &Path, env: &[(&str, &str)]) -> Result<AgentConfig, Failure> {
    let mut layers = Layers::new(agent_keys::LAYOUT);
    layers.add_file_and_drop_ins(&dir.join("agent.toml"))?;
    layers.add_env(|name| {
        env.iter().find(|(known, _)| *known == name).map(|(_, text)| (*text).to_owned())
    })?;
    layers.add_flags(&serde_json::json!({ "rack": "rack-flag", "hub": [] }));
    layers.finish()
}

/// The keys of a layout are the fields of its type.
fn assert_keys<T: serde::Serialize>(layout: Layout, config: &T) {
    let Value::Table(table) = Value::try_from(config).unwrap() else { panic!("a table") };
    let of_type: Vec<&str> = table.keys().map(String::as_str).collect();
    let mut here: Vec<&str> = layout.keys().map(|(_, name)| name).collect();
    here.sort_unstable();
    assert_eq!(here, of_type);
}

#[test]
fn the_keys_are_those_of_the_configurations() {
    let mut agent: AgentConfig =
        toml::from_str("server = \"web-1\"\nplatform = \"intel\"\n").unwrap();
    agent.advertise = Some(String::new());
    agent.join_token_file = Some("x".into());
    agent.rack = Some(String::new());
    agent.service_address = Some([127, 0, 0, 1].into());
    agent.service_port = Some(1);
    agent.service_user = Some(String::new());
    let limits =
        [&mut agent.download_limit, &mut agent.upload_limit, &mut agent.zone_download_limit];
    for limit in limits {
        *limit = Some(agent.yield_floor);
    }
    assert_keys(agent_keys::LAYOUT, &agent);
    let mut hub = HubConfig::new("/x");
    hub.repository_bucket = Some(String::new());
    for path in [
        &mut hub.repository_dir,
        &mut hub.authority_dir,
        &mut hub.identity_dir,
        &mut hub.timestamp_key,
        &mut hub.trusted_root,
    ] {
        *path = Some("y".into());
    }
    assert_keys(hub_keys::LAYOUT, &hub);
}

#[test]
fn later_layers_win_per_key_and_labels_are_merged() {
    let dir = tempfile::tempdir().unwrap();
    write(
        &dir.path().join("agent.toml"),
        "server = \"web-1\"\nplatform = \"intel\"\nrack = \"rack-file\"\nlisten = \"a:1\"\n\
         data_dir = \"data\"\nservice_port = 80\n[labels]\nzone = \"zone-a\"\nrow = \"1\"\n",
    );
    write(
        &dir.path().join("agent.d/10-zone.toml"),
        "listen = \"b:1\"\n[labels]\nzone = \"zone-b\"\n",
    );
    write(&dir.path().join("agent.d/20-listen.toml"), "listen = \"c:1\"\n");
    write(&dir.path().join("agent.d/ignored.txt"), "listen = \"d:1\"\n");
    let env = [
        ("COHORT_SERVICE_PORT", "81"),
        ("COHORT_PORTS", "metrics=9100, api=8081"),
        ("COHORT_HUB", "h1:1, h2:1"),
        ("COHORT_RACK", "env"),
    ];
    let config = agent(dir.path(), &env).unwrap();
    assert_eq!(config.listen, "c:1");
    assert_eq!(config.labels["zone"], "zone-b");
    assert_eq!(config.labels["row"], "1");
    assert_eq!(config.service_port, Some(81));
    assert_eq!((config.ports["metrics"], config.ports["api"]), (9100, 8081));
    assert_eq!(config.hub, ["h1:1", "h2:1"]);
    assert_eq!(config.rack.as_deref(), Some("rack-flag"));
    assert_eq!(config.data_dir, dir.path().join("data"), "relative to the file that says so");
}

#[test]
fn errors_name_the_source_of_a_wrong_key_or_value() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    let shown = file.display();
    let base = "server = \"web-1\"\nplatform = \"intel\"\n";
    let fails = |text: &str, env: &[(&str, &str)]| {
        write(&file, text);
        let failure = agent(dir.path(), env).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        failure
    };
    let failure = fails(&format!("{base}\nlables = {{}}\n"), &[]);
    assert_eq!(failure.error, format!("{shown} line 4: unknown key `lables`"));
    assert_eq!(failure.hints, [Hint::Meant("labels".into())]);

    let failure = fails(&format!("{base}service_port = 70000\n"), &[]);
    assert!(failure.error.starts_with(&format!("{shown}: service_port: ")), "{}", failure.error);
    let failure = fails(base, &[("COHORT_SERVICE_PORT", "http")]);
    assert_eq!(failure.error, "COHORT_SERVICE_PORT: `http` is not a whole number");
    let failure = fails(base, &[("COHORT_POLL_INTERVAL", "soon")]);
    assert!(
        failure.error.starts_with("COHORT_POLL_INTERVAL: poll_interval: `soon` is not a duration"),
        "{}",
        failure.error
    );
    let failure = fails("platform = \"intel\"\n", &[]);
    assert!(failure.error.contains("`server`"), "{}", failure.error);
    let hint = failure.hints[0].to_string();
    assert!(hint.contains("COHORT_SERVER") && hint.contains("--server"), "{hint}");
}

#[test]
fn limits_markings_and_what_is_yielded_to_are_read_from_every_layer() {
    let dir = tempfile::tempdir().unwrap();
    let text = "server = \"web-1\"\nplatform = \"intel\"\nyield_to = []\npacket_marking = \"8\"\n";
    fs::write(dir.path().join("agent.toml"), text).unwrap();
    let read = agent(dir.path(), &[]).unwrap();
    assert_eq!((read.yield_to.len(), read.packet_marking.to_string().as_str()), (0, "8"));
    assert_eq!(read.zone_download_limit, None);
    fs::create_dir(dir.path().join("agent.d")).unwrap();
    let limit = "zone_download_limit = \"50Mbit/s\"\nyield_to = [\"cpu\"]\n";
    fs::write(dir.path().join("agent.d/50-limits.toml"), limit).unwrap();
    let env = [("COHORT_YIELD_FLOOR", "1MB/s"), ("COHORT_PACKET_MARKING", "le")];
    let read = agent(dir.path(), &env).unwrap();
    assert_eq!(read.zone_download_limit.unwrap().bytes_per_second(), 6_250_000);
    assert_eq!(read.yield_to, [cohort_agent::config::YieldTo::Cpu]);
    assert_eq!(read.yield_floor.bytes_per_second(), 1_000_000);
    assert_eq!(read.packet_marking, cohort_wire::dscp::Dscp::LOWER_EFFORT);
    let wrong = [
        ("COHORT_YIELD_TO", "io,disk"),
        ("COHORT_YIELD_FLOOR", "fast"),
        ("COHORT_PACKET_MARKING", "64"),
    ];
    for pair in wrong {
        let failure = agent(dir.path(), &[pair]).unwrap_err();
        assert!(failure.error.contains(pair.0), "{}", failure.error);
    }
}

#[test]
fn a_file_that_is_too_long_is_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("agent.toml");
    fs::File::create(&file).unwrap().set_len(64 << 20).unwrap();
    let failure = agent(dir.path(), &[]).unwrap_err();
    assert!(failure.error.contains("67108864"), "{}", failure.error);
}

#[test]
fn every_key_is_documented() {
    let manual = include_str!("../../../docs/operating.md");
    for layout in [agent_keys::LAYOUT, hub_keys::LAYOUT] {
        for (_, key) in layout.keys() {
            assert!(manual.contains(&format!("| `{key}` |")), "{key}");
        }
    }
}
