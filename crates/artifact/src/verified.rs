//! Values whose signatures were checked. There is no other way to create one.

use std::ops::Deref;

use cohort_core::ids::{AppId, Channel, Digest, Platform, Version};
use cohort_core::release::Release;
use jiff::Timestamp;

use crate::digest::digest_of_bytes;
use crate::manifest::Manifest;

/// A value from a file that the repository's keys signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<T> {
    value: T,
    digest: Digest,
}

/// A manifest that the repository's keys signed, for the app, version and platform asked for.
pub type VerifiedManifest = Verified<Manifest>;

impl<T> Verified<T> {
    /// Only for code that has just verified `bytes`.
    pub(crate) fn of(value: T, bytes: &[u8]) -> Self {
        Self { value, digest: digest_of_bytes(bytes) }
    }

    /// BLAKE3 of the signed file's bytes.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The value; its type no longer shows that it was verified.
    #[must_use]
    pub fn into_inner(self) -> T {
        self.value
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl VerifiedManifest {
    /// The release as a group's log names it.
    #[must_use]
    pub fn release(&self) -> Release {
        Release {
            version: self.version.clone(),
            platform: self.platform.clone(),
            artifact: self.root.clone(),
            manifest: self.digest.clone(),
            length: self.length,
            rollback: self.rollback,
        }
    }
}

/// What a channel offers for a platform.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ReleaseOffer {
    pub app: AppId,
    pub channel: Channel,
    pub platform: Platform,
    /// The version that the channel names.
    pub version: Version,
    /// Increases by one every time the channel is set.
    pub serial: u64,
    /// When the channel was set.
    pub set_at: Timestamp,
    /// The release's manifest for the platform.
    pub manifest: VerifiedManifest,
}
