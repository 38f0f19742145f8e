//! The keys of `hub.toml`.

use toml::Table;

use crate::layers::{Key, Kind, Layout};
use crate::toml_keys::Shape;

/// Where a hub's configuration is, when neither a flag nor the current folder has one.
pub(crate) const FILE: &str = "/etc/cohort/hub.toml";

const KEYS: &[Key] = &[
    Key { name: "data_dir", kind: Kind::Path },
    Key { name: "listen", kind: Kind::Text },
    Key { name: "repository_listen", kind: Kind::Text },
    Key { name: "repository_dir", kind: Kind::Path },
    Key { name: "repository_bucket", kind: Kind::Text },
    Key { name: "authority_dir", kind: Kind::Path },
    Key { name: "identity_dir", kind: Kind::Path },
    Key { name: "timestamp_key", kind: Kind::Path },
    Key { name: "trusted_root", kind: Kind::Path },
    Key { name: "name", kind: Kind::Text },
    Key { name: "addresses", kind: Kind::List },
    Key { name: "mirrors", kind: Kind::List },
    Key { name: "grouping", kind: Kind::List },
    Key { name: "renew_interval_s", kind: Kind::Number },
    Key { name: "token_valid_s", kind: Kind::Number },
    Key { name: "confirm_restored", kind: Kind::Bool },
];

const SHAPES: &[(&str, Shape)] = &[
    ("data_dir", Shape::Value),
    ("listen", Shape::Value),
    ("repository_listen", Shape::Value),
    ("repository_dir", Shape::Value),
    ("repository_bucket", Shape::Value),
    ("authority_dir", Shape::Value),
    ("identity_dir", Shape::Value),
    ("timestamp_key", Shape::Value),
    ("trusted_root", Shape::Value),
    ("name", Shape::Value),
    ("addresses", Shape::Value),
    ("mirrors", Shape::Value),
    ("grouping", Shape::Value),
    ("renew_interval_s", Shape::Value),
    ("token_valid_s", Shape::Value),
    ("confirm_restored", Shape::Value),
];

/// How a hub's configuration is laid out.
pub(crate) const LAYOUT: Layout =
    Layout { keys: KEYS, shapes: SHAPES, env_prefix: "COHORT_HUB_", sample };

fn sample() -> Table {
    let mut table = Table::new();
    table.insert("data_dir".to_owned(), "/var/lib/cohort-hub".into());
    table
}
