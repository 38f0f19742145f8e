//! The keys of `hub.toml`.

use crate::layers::{Kind, Layout};

/// The path of a hub's configuration without a flag or a file in the current directory.
pub(crate) const FILE: &str = "/etc/cohort/hub.toml";

pub(crate) const LAYOUT: Layout = Layout {
    keys: &[
        (Kind::Text, "listen repository_listen repository_access repository_bucket name"),
        (Kind::Number, "renew_interval_s token_valid_s unpublished_bytes_max"),
        (Kind::Bool, "confirm_restored"),
        (Kind::List, "addresses mirrors grouping"),
        (
            Kind::Path,
            "data_dir repository_dir authority_dir identity_dir timestamp_key trusted_root",
        ),
    ],
    env_prefix: "COHORT_HUB_",
    required: &[("data_dir", "/var/lib/cohort-hub")],
};
