//! The keys of `agent.toml`.

use toml::Table;

use crate::layers::{Key, Kind, Layout, key};

/// The default path of an agent's configuration.
pub(crate) const FILE: &str = "/etc/cohort/agent.toml";

const KEYS: &[Key] = &[
    key("server", Kind::Text),
    key("data_dir", Kind::Path),
    key("install_dir", Kind::Path),
    key("listen", Kind::Text),
    key("advertise", Kind::Text),
    key("probe_listen", Kind::Text),
    key("hub", Kind::List),
    key("join_token_file", Kind::Path),
    key("platform", Kind::Text),
    key("labels", Kind::Map),
    key("rack", Kind::Text),
    key("mirrors", Kind::List),
    key("service_port", Kind::Number),
    key("service_user", Kind::Text),
    key("poll_interval", Kind::Text),
    key("ready_without_orders_after", Kind::Text),
    key("download_limit", Kind::Text),
    key("upload_limit", Kind::Text),
    key("zone_download_limit", Kind::Text),
    key("packet_marking", Kind::Text),
    key("yield_to", Kind::List),
    key("yield_floor", Kind::Text),
    key("pressure_dir", Kind::Path),
    key("exec_programs", Kind::PathMap),
];

/// Keys, environment variables and a valid sample of an agent's configuration.
pub(crate) const LAYOUT: Layout = Layout { keys: KEYS, env_prefix: "COHORT_", sample };

/// The platform that this program was built for, named as in container images.
pub(crate) fn own_platform() -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("{}/{arch}", std::env::consts::OS)
}

fn sample() -> Table {
    let mut table = Table::new();
    table.insert("server".to_owned(), "web-1".into());
    table.insert("platform".to_owned(), "linux/amd64".into());
    table
}
