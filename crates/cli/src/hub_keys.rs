//! The keys of `hub.toml`.

use toml::Table;

use crate::layers::{Key, Kind, Layout, key};

/// The path of a hub's configuration if there is no flag, and none in the current folder.
pub(crate) const FILE: &str = "/etc/cohort/hub.toml";

const KEYS: &[Key] = &[
    key("data_dir", Kind::Path),
    key("listen", Kind::Text),
    key("repository_listen", Kind::Text),
    key("repository_dir", Kind::Path),
    key("repository_bucket", Kind::Text),
    key("authority_dir", Kind::Path),
    key("identity_dir", Kind::Path),
    key("timestamp_key", Kind::Path),
    key("trusted_root", Kind::Path),
    key("name", Kind::Text),
    key("addresses", Kind::List),
    key("mirrors", Kind::List),
    key("grouping", Kind::List),
    key("renew_interval_s", Kind::Number),
    key("token_valid_s", Kind::Number),
    key("confirm_restored", Kind::Bool),
];

/// Keys, environment variables and a valid sample of a hub's configuration.
pub(crate) const LAYOUT: Layout = Layout { keys: KEYS, env_prefix: "COHORT_HUB_", sample };

fn sample() -> Table {
    let mut table = Table::new();
    table.insert("data_dir".to_owned(), "/var/lib/cohort-hub".into());
    table
}
