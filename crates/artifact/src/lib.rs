//! What is deployed, and why it can be trusted: manifests, digests, signing, and verification.
//!
//! A **repository** is a plain TUF repository (`metadata/`, `targets/`) with the artifacts' bytes
//! next to it (`blobs/`); any static HTTP server can mirror it. A signed target is never an
//! artifact but its small [`Manifest`], which covers the artifact's bytes by their BLAKE3 root; the
//! hashes of its units (64 KiB each) merge into that root. A **channel** is a signed target that
//! names a version.
//!
//! **What it is.** Both sides of the repository: publishing ([`Repository`], or locally a
//! [`WorkingCopy`] and remotely [`Repository::receive`]), reading without trusting mirrors or peers
//! ([`TrustedRepository`]), and the one client of mirrors ([`client`]).
//!
//! **What it must never know.** Groups, rollouts and consensus: it answers "which release does this
//! channel name, and who says so", never "what should this server do now".
//!
//! **Where to start reading.** [`Manifest`], then [`UnitHashes`] (bytes against a manifest), then
//! [`Repository`] and [`TrustedRepository`].

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod channel;
mod checks;
pub mod client;
mod delta;
mod digest;
mod key_change;
mod keys;
mod layout;
mod lifetimes;
mod lock;
mod manifest;
mod metadata;
mod metadata_transport;
mod pack;
mod package_file;
mod publish;
mod publish_deltas;
mod receive;
mod remove;
mod repository;
mod repository_file;
mod steps;
mod trust;
mod trust_error;
mod trust_state;
mod units;
mod verified;
mod working_copy;

pub use channel::ChannelPointer;
pub use client::Mirror;
pub use cohort_core::ids::{AppId, Channel, Digest, Platform, Version};
pub use cohort_core::release::Rollback;
pub use delta::{DeltaError, DeltaInput, DeltaMaker, Method, apply_delta};
pub use digest::{digest_of, digest_of_bytes};
pub use key_change::{KeyChange, KeyChangeError, RoleInRoot};
pub use keys::{AskPassphrase, KeyError, KeyRole, Keys, SigningKey, no_passphrase};
pub use layout::{blob_path, channel_target, manifest_target, units_path};
pub use lifetimes::{Expiries, Lifetimes};
pub use manifest::{
    ARTIFACT_BYTES_MAX, Delta, ENTRIES_MAX, Format, MANIFEST_BYTES_MAX, MANIFEST_SCHEMA, Manifest,
    ManifestError, Protocols, UNIT_BYTES, UNPACKED_BYTES_MAX, parse_rollback,
};
pub use pack::{Inspection, PackError, inspect_tarball, pack_folder};
pub use package_file::{PACKAGE_FILE, PackageFile, PackageFileError};
pub use publish::{DELTA_BUDGET, DeltaTried, Judge, PublishRequest, Published, Told, try_out};
pub use publish_deltas::NoDelta;
pub use remove::{Collected, UNUSED_AGE_MIN};
pub use repository::{ReleaseName, Repository, RepositoryError};
pub use repository_file::{RepositoryFile, is_plain_name, repository_files};
pub use trust::{TrustOptions, TrustedRepository};
pub use trust_error::TrustError;
pub use units::{UnitError, UnitHasher, UnitHashes, hash_file, root_of_units};
pub use verified::VerifiedManifest;
pub use working_copy::{Needs, WorkingCopy};

#[cfg(test)]
mod crash_test;
#[cfg(test)]
mod golden_test;
#[cfg(test)]
mod trust_test;
#[cfg(test)]
mod units_test;
