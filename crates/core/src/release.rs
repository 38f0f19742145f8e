//! A release as the group sees it: what was signed, and where a roll-back may go.

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, Platform, Version};

/// A version of an app for one platform, as it stands in the log once its signature was verified.
///
/// Freshness and signature are judged once, when the rollout is decided; from then on the digests
/// in the log are what every server verifies against.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The version, compared only for equality.
    pub version: Version,
    /// The platform that the artifact is for.
    pub platform: Platform,
    /// BLAKE3 root of the artifact's bytes.
    pub artifact: Digest,
    /// BLAKE3 of the manifest's bytes: the signed target.
    pub manifest: Digest,
    /// Length of the artifact, in bytes.
    pub length: u64,
    /// Whether the release can be rolled back.
    pub rollback: Rollback,
}

/// What a release says about going back from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rollback {
    /// The release before can be put back.
    Revert,
    /// Stop in place and wait for a person.
    Freeze,
    /// Never go back: data was changed for good.
    ForwardOnly,
}
