//! A reader's state on disk: the newest verified metadata.
//!
//! One file, replaced by rename, so that it is intact after a crash (the TUF library's own store is
//! four files written in place). Its content is verified again whenever it is loaded; it is what
//! exposes an older repository as a replay.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cohort_core::refused::WhyRefused;
use serde::{Deserialize, Serialize};

use crate::checks::store_error;
use crate::metadata::METADATA_BYTES_MAX;
use crate::trust_error::TrustError;
use cohort_base::durable::{self, SECRET};

const STATE_FILE: &str = "trusted.json";
const STATE_SCHEMA: u32 = 1;

/// Longest bundle, in bytes: targets of maximum length, escaped as a JSON text, and the small
/// files, 256 roots of 3 KiB among them.
pub(crate) const BUNDLE_BYTES_MAX: u64 = 2 * METADATA_BYTES_MAX + (2 << 20);

/// The verified metadata files, byte for byte as signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Bundle {
    /// The chain of roots, from the operator's to the newest: a peer that was off while keys were
    /// changed follows it.
    pub(crate) roots: Vec<String>,
    pub(crate) timestamp: String,
    pub(crate) snapshot: String,
    pub(crate) targets: String,
}

#[derive(Deserialize)]
struct VersionOnly {
    signed: SignedVersion,
}

#[derive(Deserialize)]
struct SignedVersion {
    version: u64,
}

/// The version of a verified file; 0 for anything else.
pub(crate) fn version_in(text: &str) -> u64 {
    serde_json::from_str(text).map_or(0, |VersionOnly { signed }| signed.version)
}

impl Bundle {
    /// The files by the names under which a repository serves them.
    pub(crate) fn files(&self) -> Result<BTreeMap<String, Bytes>, TrustError> {
        let versioned = |role: &str, text: &str| {
            let VersionOnly { signed } = serde_json::from_str(text).map_err(|error| {
                TrustError::because(WhyRefused::Malformed { file: format!("{role}.json") }, error)
            })?;
            let name = format!("{}.{role}.json", signed.version);
            Ok::<_, TrustError>((name, Bytes::from(text.to_owned())))
        };
        let mut files = BTreeMap::from([
            versioned("snapshot", &self.snapshot)?,
            versioned("targets", &self.targets)?,
        ]);
        for root in &self.roots {
            files.extend([versioned("root", root)?]);
        }
        let timestamp = Bytes::from(self.timestamp.clone());
        files.insert("timestamp.json".to_owned(), timestamp);
        Ok(files)
    }
}

#[derive(Deserialize)]
struct SchemaOnly {
    schema: u32,
}

/// Content of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    schema: u32,
    /// SHA-256 of the operator's root; another root starts over.
    pub(crate) anchor_sha256: String,
    pub(crate) bundle: Bundle,
}

impl State {
    pub(crate) fn new(anchor_sha256: String, bundle: Bundle) -> Self {
        Self { schema: STATE_SCHEMA, anchor_sha256, bundle }
    }

    fn path(store: &Path) -> PathBuf {
        store.join(STATE_FILE)
    }

    /// How long ago the state of a store was replaced, in milliseconds; 0 if the clock went back
    /// since, `None` if there is no state.
    pub(crate) fn age_ms(store: &Path) -> Option<u64> {
        let replaced = fs::metadata(Self::path(store)).ok()?.modified().ok()?;
        let age = replaced.elapsed().unwrap_or_default();
        Some(u64::try_from(age.as_millis()).unwrap_or(u64::MAX))
    }

    /// Reads the state of a store; `None` if there is none yet.
    pub(crate) fn load(store: &Path) -> Result<Option<Self>, TrustError> {
        let path = Self::path(store);
        let damaged = |cause: Box<dyn Error + Send + Sync>| {
            TrustError::because(
                WhyRefused::StoreDamaged { path: path.display().to_string() },
                cause,
            )
        };
        let length = match fs::metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            about => about.map_err(|error| store_error(&path, error))?.len(),
        };
        if length > BUNDLE_BYTES_MAX {
            return Err(damaged(format!("longer than {BUNDLE_BYTES_MAX} bytes").into()));
        }
        let bytes = fs::read(&path).map_err(|error| store_error(&path, error))?;
        // First: another version may have other fields.
        let SchemaOnly { schema: found } =
            serde_json::from_slice(&bytes).map_err(|error| damaged(error.into()))?;
        if found != STATE_SCHEMA {
            let (path, supported) = (path.display().to_string(), STATE_SCHEMA);
            return Err(WhyRefused::StoreOfVersion { path, found, supported }.into());
        }
        serde_json::from_slice(&bytes).map(Some).map_err(|error| damaged(error.into()))
    }

    /// Replaces the state of a store.
    pub(crate) fn save(&self, store: &Path) -> Result<(), TrustError> {
        let path = Self::path(store);
        let bytes = serde_json::to_vec(self).expect("texts and a time are JSON");
        durable::write(&path, &bytes, SECRET).map_err(|error| store_error(&path, error))
    }
}
