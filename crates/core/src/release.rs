//! A release as the group sees it.

use serde::{Deserialize, Serialize};

use crate::ids::{Digest, Platform, Version};

/// A version of an app for one platform, as recorded in the log.
/// Signature and freshness are checked when the rollout is decided; from then on, every server
/// verifies against the digests in the log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Release {
    /// The version, compared only for equality.
    pub version: Version,
    pub platform: Platform,
    /// BLAKE3 root of the artifact's bytes.
    pub artifact: Digest,
    /// BLAKE3 of the manifest's bytes, the signed part.
    pub manifest: Digest,
    pub length: u64,
    /// What it may unpack to at most, in bytes.
    pub unpacked_bytes: u64,
    /// How many files, directories and links it may have at most.
    pub entries: u32,
    pub rollback: Rollback,
}

/// Whether a release can be rolled back, as declared in its manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Rollback {
    Revert,
    /// Only an operator may roll it back; otherwise the group stops in place.
    Freeze,
    /// It cannot: it changes data irreversibly.
    ForwardOnly,
}
