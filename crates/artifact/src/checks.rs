//! Small checks of the reader, on plain values.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use cohort_core::ids::{AppId, Platform, Version};
use jiff::{SignedDuration, Timestamp};
use tough::schema::{RoleType as Role, Target};

use crate::digest::sha256;
use crate::manifest::{Manifest, ManifestError};
use crate::metadata_transport::SMALL_METADATA_BYTES_MAX;
use crate::trust_error::{TrustError, TrustErrorKind, cause};
use crate::trust_state::State;
use crate::verified::VerifiedManifest;

/// How far a clock may step back: more than NTP corrects in one step, less than matters for
/// signatures that last for weeks.
const CLOCK_STEP_BACK_MAX: SignedDuration = SignedDuration::from_secs(60);

pub(crate) fn check_root(bytes: &[u8]) -> Result<(), TrustErrorKind> {
    if bytes.len() as u64 > SMALL_METADATA_BYTES_MAX {
        let (what, limit_bytes) = ("the trusted root".to_owned(), SMALL_METADATA_BYTES_MAX);
        return Err(TrustErrorKind::TooLarge { what, limit_bytes });
    }
    let root: tough::schema::Signed<tough::schema::Root> =
        serde_json::from_slice(bytes).map_err(|error| TrustErrorKind::BadRoot(cause(error)))?;
    root.signed.verify_role(&root).map_err(|error| TrustErrorKind::BadRoot(cause(error)))
}

pub(crate) fn check_clock(now: Timestamp, state: Option<&State>) -> Result<(), TrustErrorKind> {
    match state.map(|state| state.clock_seen) {
        Some(seen) if seen.duration_since(now) > CLOCK_STEP_BACK_MAX => {
            Err(TrustErrorKind::ClockWentBack { now, seen })
        }
        _ => Ok(()),
    }
}

pub(crate) fn check_manifest(
    name: &str,
    bytes: &[u8],
    app: &AppId,
    version: &Version,
    platform: &Platform,
) -> Result<VerifiedManifest, TrustError> {
    let manifest = Manifest::parse(bytes).map_err(|error| malformed(name, error))?;
    same("app", app, &manifest.app)?;
    same("version", version, &manifest.version)?;
    same("platform", platform, &manifest.platform)?;
    Ok(VerifiedManifest::of(manifest, bytes))
}

pub(crate) fn same<T: PartialEq + fmt::Display>(
    field: &'static str,
    wanted: &T,
    found: &T,
) -> Result<(), TrustError> {
    if wanted == found {
        return Ok(());
    }
    let (wanted, found) = (wanted.to_string(), found.to_string());
    Err(TrustErrorKind::WrongContent { field, wanted, found }.here())
}

pub(crate) fn malformed(name: &str, error: ManifestError) -> TrustError {
    TrustErrorKind::Malformed { what: name.to_owned(), source: cause(error) }.here()
}

pub(crate) fn is_target(target: &Target, bytes: &[u8]) -> bool {
    bytes.len() as u64 == target.length && sha256(bytes) == *target.hashes.sha256
}

pub(crate) fn store_error(path: &Path, error: std::io::Error) -> TrustErrorKind {
    TrustErrorKind::Store { path: path.to_owned(), source: Arc::new(error) }
}

/// The refusal to show if every mirror was refused: wrong content is more informative than silence.
pub(crate) fn most_telling(refused: Vec<TrustError>) -> TrustError {
    let mut refused = refused.into_iter();
    let Some(first) = refused.next() else {
        return TrustErrorKind::NoMirror.here();
    };
    if !first.kind.is_unreachable() {
        return first;
    }
    refused.find(|error| !error.kind.is_unreachable()).unwrap_or(first)
}

/// When the newest offered file of a role expires.
pub(crate) fn expiry_in(files: &BTreeMap<String, Bytes>, role: Role) -> Option<Timestamp> {
    let suffix = format!("{role}.json");
    let of_role = files.iter().filter(|(name, _)| name.ends_with(&suffix));
    of_role.filter_map(|(_, bytes)| expiry(bytes)).max()
}

pub(crate) fn expiry(bytes: &[u8]) -> Option<Timestamp> {
    let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    value.get("signed")?.get("expires")?.as_str()?.parse().ok()
}
