//! A manifest with verified signatures. It cannot be created in any other way.

use std::ops::Deref;

use cohort_core::ids::Digest;
use cohort_core::release::Release;

use crate::digest::digest_of_bytes;
use crate::manifest::Manifest;

/// A manifest that the repository's keys signed, for the requested app, version and platform.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedManifest {
    manifest: Manifest,
    digest: Digest,
}

impl VerifiedManifest {
    /// Only for code that has just verified `bytes`.
    pub(crate) fn of(manifest: Manifest, bytes: &[u8]) -> Self {
        Self { manifest, digest: digest_of_bytes(bytes) }
    }

    /// BLAKE3 of the signed file's bytes.
    #[must_use]
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// The manifest; its type no longer shows that it was verified.
    #[must_use]
    pub fn into_inner(self) -> Manifest {
        self.manifest
    }

    /// The release as named in a group's log.
    #[must_use]
    pub fn release(&self) -> Release {
        Release {
            version: self.version.clone(),
            platform: self.platform.clone(),
            artifact: self.root.clone(),
            manifest: self.digest.clone(),
            length: self.length,
            unpacked_bytes: self.unpacked_bytes,
            entries: self.entries,
            rollback: self.rollback,
        }
    }
}

impl Deref for VerifiedManifest {
    type Target = Manifest;

    fn deref(&self) -> &Manifest {
        &self.manifest
    }
}
