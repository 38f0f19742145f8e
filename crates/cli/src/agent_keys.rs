//! The keys of `agent.toml`.

use toml::Table;

use crate::layers::{Key, Kind, Layout};
use crate::toml_keys::Shape;

/// Where an agent's configuration is.
pub(crate) const FILE: &str = "/etc/cohort/agent.toml";

const KEYS: &[Key] = &[
    Key { name: "server", kind: Kind::Text },
    Key { name: "data_dir", kind: Kind::Path },
    Key { name: "install_dir", kind: Kind::Path },
    Key { name: "listen", kind: Kind::Text },
    Key { name: "advertise", kind: Kind::Text },
    Key { name: "probe_listen", kind: Kind::Text },
    Key { name: "hub", kind: Kind::List },
    Key { name: "join_token_file", kind: Kind::Path },
    Key { name: "platform", kind: Kind::Text },
    Key { name: "labels", kind: Kind::Map },
    Key { name: "rack", kind: Kind::Text },
    Key { name: "mirrors", kind: Kind::List },
    Key { name: "service_port", kind: Kind::Number },
    Key { name: "service_user", kind: Kind::Text },
    Key { name: "poll_interval", kind: Kind::Text },
    Key { name: "ready_without_orders_after", kind: Kind::Text },
    Key { name: "download_limit", kind: Kind::Text },
    Key { name: "upload_limit", kind: Kind::Text },
    Key { name: "zone_download_limit", kind: Kind::Text },
    Key { name: "packet_marking", kind: Kind::Text },
    Key { name: "yield_to", kind: Kind::List },
    Key { name: "yield_floor", kind: Kind::Text },
    Key { name: "pressure_dir", kind: Kind::Path },
    Key { name: "exec_programs", kind: Kind::PathMap },
];

const SHAPES: &[(&str, Shape)] = &[
    ("server", Shape::Value),
    ("data_dir", Shape::Value),
    ("install_dir", Shape::Value),
    ("listen", Shape::Value),
    ("advertise", Shape::Value),
    ("probe_listen", Shape::Value),
    ("hub", Shape::Value),
    ("join_token_file", Shape::Value),
    ("platform", Shape::Value),
    ("labels", Shape::Free),
    ("rack", Shape::Value),
    ("mirrors", Shape::Value),
    ("service_port", Shape::Value),
    ("service_user", Shape::Value),
    ("poll_interval", Shape::Value),
    ("ready_without_orders_after", Shape::Value),
    ("download_limit", Shape::Value),
    ("upload_limit", Shape::Value),
    ("zone_download_limit", Shape::Value),
    ("packet_marking", Shape::Value),
    ("yield_to", Shape::Value),
    ("yield_floor", Shape::Value),
    ("pressure_dir", Shape::Value),
    ("exec_programs", Shape::Free),
];

/// How an agent's configuration is laid out.
pub(crate) const LAYOUT: Layout =
    Layout { keys: KEYS, shapes: SHAPES, env_prefix: "COHORT_", sample };

/// The platform that this program was built for, in the words of container images.
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
