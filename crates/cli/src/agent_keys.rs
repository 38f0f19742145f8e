//! The keys of `agent.toml`.

use crate::layers::{Kind, Layout};

/// The default path of an agent's configuration.
pub(crate) const FILE: &str = "/etc/cohort/agent.toml";

pub(crate) const LAYOUT: Layout = Layout {
    keys: &[
        (
            Kind::Text,
            "server listen advertise probe_listen platform rack service_user service_address \
             poll_interval max_metadata_age ready_without_orders_after replace_after \
             election_timeout heartbeat download_limit upload_limit zone_download_limit \
             packet_marking yield_floor",
        ),
        (Kind::Number, "service_port voters standbys"),
        (Kind::List, "hub mirrors yield_to systemd_units"),
        (Kind::Map, "labels"),
        (Kind::NumberMap, "ports"),
        (
            Kind::Path,
            "data_dir env_dir files_dir install_dir join_token_file kill_file pressure_dir",
        ),
        (Kind::PathMap, "exec_programs"),
    ],
    env_prefix: "COHORT_",
    required: &[("server", "web-1"), ("platform", "linux/amd64")],
};

/// The platform that this program was built for, named as in container images.
pub(crate) fn own_platform() -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("{}/{arch}", std::env::consts::OS)
}
