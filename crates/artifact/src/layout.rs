//! File names and paths in a repository. All of them are derived here and nowhere else.
//!
//! ```text
//! repository.json                          lifetimes of signatures; not trusted by readers
//! metadata/N.root.json N.targets.json N.snapshot.json timestamp.json
//! targets/<dir>/<sha256>.<name>            the signed targets (manifests, channels, removals)
//! blobs/<root>  blobs/<root>.units         artifacts and their unit hashes
//! ```

use cohort_core::ids::{AppId, Channel, Digest, Platform, Version};

pub(crate) const METADATA_DIR: &str = "metadata";
pub(crate) const TARGETS_DIR: &str = "targets";
pub(crate) const BLOBS_DIR: &str = "blobs";
/// The start of every channel's target name, which nothing else has.
const CHANNELS_DIR: &str = "channels/";
/// The start of the target names of what was removed.
const REMOVED_DIR: &str = "removed/";
pub(crate) const SETTINGS_FILE: &str = "repository.json";

/// The name of the TUF target that is the manifest of one release for one platform: `linux/amd64`
/// becomes `linux~amd64`, which needs no escape in a URL; `~` cannot occur in a platform.
#[must_use]
pub fn manifest_target(app: &AppId, version: &Version, platform: &Platform) -> String {
    format!("apps/{app}/{version}/{}/manifest.json", platform.as_str().replace('/', "~"))
}

/// The name of the TUF target that is one channel of an app.
#[must_use]
pub fn channel_target(app: &AppId, channel: &Channel) -> String {
    format!("{CHANNELS_DIR}{app}/{channel}.json")
}

/// The app and the channel of such a name.
pub(crate) fn channel_of_target(name: &str) -> Option<(AppId, Channel)> {
    let (app, channel) = name.strip_prefix(CHANNELS_DIR)?.strip_suffix(".json")?.split_once('/')?;
    Some((app.parse().ok()?, channel.parse().ok()?))
}

/// The name of the TUF target that lists what was removed of an app.
pub(crate) fn removed_target(app: &AppId) -> String {
    format!("{REMOVED_DIR}{app}.json")
}

/// Whether a TUF target is a channel; one that is no list of removals either is a manifest.
pub(crate) fn is_channel(target: &str) -> bool {
    target.starts_with(CHANNELS_DIR)
}

/// Whether a TUF target is a list of removals.
pub(crate) fn is_removed_list(target: &str) -> bool {
    target.starts_with(REMOVED_DIR)
}

/// The path of an artifact's bytes, relative to the base of a repository or mirror.
#[must_use]
pub fn blob_path(root: &Digest) -> String {
    format!("{BLOBS_DIR}/{root}")
}

/// The path of an artifact's unit hashes, relative to the base of a repository or mirror.
#[must_use]
pub fn units_path(root: &Digest) -> String {
    format!("{BLOBS_DIR}/{root}.units")
}

/// The path of a target's file, relative to the base: consistent snapshots put the hash in its
/// name.
pub(crate) fn target_path(target: &str, sha256_hex: &str) -> String {
    match target.rsplit_once('/') {
        Some((dir, name)) => format!("{TARGETS_DIR}/{dir}/{sha256_hex}.{name}"),
        None => format!("{TARGETS_DIR}/{sha256_hex}.{target}"),
    }
}

#[cfg(test)]
#[path = "layout_test.rs"]
mod layout_test;
