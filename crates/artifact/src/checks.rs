//! Small checks of the reader, on plain values.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use bytes::Bytes;
use cohort_core::ids::{AppId, Platform, Version};
use cohort_core::refused::{Field, WhyRefused};
use jiff::Timestamp;
use tough::schema::{RoleType, Target};

use crate::digest::sha256;
use crate::manifest::{Manifest, ManifestError};
use crate::metadata_transport::SMALL_METADATA_BYTES_MAX;
use crate::trust_error::TrustError;
use crate::verified::VerifiedManifest;

pub(crate) fn check_root(bytes: &[u8]) -> Result<(), TrustError> {
    if bytes.len() as u64 > SMALL_METADATA_BYTES_MAX {
        let (file, limit_bytes) = ("the trusted root".to_owned(), SMALL_METADATA_BYTES_MAX);
        return Err(WhyRefused::TooLarge { file, limit_bytes }.into());
    }
    let root: tough::schema::Signed<tough::schema::Root> = serde_json::from_slice(bytes)
        .map_err(|error| TrustError::because(WhyRefused::BadRoot, error))?;
    root.signed.verify_role(&root).map_err(|error| TrustError::because(WhyRefused::BadRoot, error))
}

pub(crate) fn check_manifest(
    name: &str,
    bytes: &[u8],
    app: &AppId,
    version: &Version,
    platform: &Platform,
) -> Result<VerifiedManifest, TrustError> {
    let manifest = Manifest::parse(bytes).map_err(|error| malformed(name, error))?;
    same(Field::App, app, &manifest.app)?;
    same(Field::Version, version, &manifest.version)?;
    same(Field::Platform, platform, &manifest.platform)?;
    Ok(VerifiedManifest::of(manifest, bytes))
}

pub(crate) fn same<T: PartialEq + fmt::Display>(
    field: Field,
    wanted: &T,
    found: &T,
) -> Result<(), TrustError> {
    if wanted == found {
        return Ok(());
    }
    let (wanted, found) = (wanted.to_string(), found.to_string());
    Err(WhyRefused::WrongContent { field, wanted, found }.into())
}

pub(crate) fn malformed(name: &str, error: ManifestError) -> TrustError {
    TrustError::because(WhyRefused::Malformed { file: name.to_owned() }, error)
}

pub(crate) fn is_target(target: &Target, bytes: &[u8]) -> bool {
    bytes.len() as u64 == target.length && sha256(bytes) == *target.hashes.sha256
}

pub(crate) fn store_error(path: &Path, error: std::io::Error) -> TrustError {
    TrustError::because(WhyRefused::Store { path: path.display().to_string() }, error)
}

/// The refusal to show if every mirror was refused: wrong content is more informative than silence.
pub(crate) fn most_telling(refused: Vec<TrustError>) -> TrustError {
    let mut refused = refused.into_iter();
    let Some(first) = refused.next() else {
        return WhyRefused::NoMirror.into();
    };
    if !first.why.is_unreachable() {
        return first;
    }
    refused.find(|error| !error.why.is_unreachable()).unwrap_or(first)
}

/// When the newest offered file of a role expires.
pub(crate) fn expiry_in(files: &BTreeMap<String, Bytes>, role: RoleType) -> Option<Timestamp> {
    let suffix = format!("{role}.json");
    let of_role = files.iter().filter(|(name, _)| name.ends_with(&suffix));
    of_role.filter_map(|(_, bytes)| expiry(bytes)).max()
}

pub(crate) fn expiry(bytes: &[u8]) -> Option<Timestamp> {
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    value.get("signed")?.get("expires")?.as_str()?.parse().ok()
}
