//! The manifest: everything a server must know about a release before fetching any of it.

use std::collections::BTreeSet;

use cohort_core::ids::{AppId, Digest, Platform, Version};
use cohort_core::release::Rollback;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The schema version that this program writes, and the newest that it reads.
pub const MANIFEST_SCHEMA: u32 = 1;

/// Length of a unit in bytes: verified, leased, and forwarded as a whole.
///
/// 64 KiB performed best of 64 KiB, 256 KiB, 1 MiB and 4 MiB, and is a complete BLAKE3 subtree (64
/// chunks of 1 KiB), so that unit hashes merge into the root.
pub const UNIT_BYTES: u32 = 65_536;

/// Longest artifact, in bytes. 16 GiB keeps the unit hashes (32 bytes per unit) at 8 MiB, which
/// every server holds in memory during a transfer.
pub const ARTIFACT_BYTES_MAX: u64 = 16 << 30;

/// Longest manifest, in bytes. A full one (64 names in each list, 16 deltas) is under 20 KiB.
pub const MANIFEST_BYTES_MAX: u64 = 64 << 10;

/// Most bytes that an artifact may unpack to: four times the longest artifact.
pub const UNPACKED_BYTES_MAX: u64 = 64 << 30;

/// Most files, directories and links in an artifact; node_modules of a large web app has 100,000.
pub const ENTRIES_MAX: u32 = 250_000;

/// Most names in `protocols.reads`, `protocols.writes` and `schemas`, and most deltas.
const LIST_ENTRIES_MAX: usize = 64;

/// Longest protocol or schema name, in bytes.
const LIST_NAME_BYTES_MAX: usize = 64;

const _: () = assert!(ARTIFACT_BYTES_MAX / UNIT_BYTES as u64 <= u32::MAX as u64);

/// The signed facts about one release of an app for one platform; a target of the repository.
///
/// Rule for unknown fields: a reader rejects an unknown `schema`, *and* any unknown field within a
/// known schema, because a field that an old agent skipped could be the one that forbids what it is
/// about to do. New fields therefore increment the schema.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Schema version; [`MANIFEST_SCHEMA`]. First in the file.
    pub schema: u32,
    pub app: AppId,
    pub version: Version,
    pub platform: Platform,
    pub format: Format,
    /// Length of the artifact in bytes, from 1 to [`ARTIFACT_BYTES_MAX`].
    pub length: u64,
    /// BLAKE3 root over the artifact's bytes; also its name in the repository.
    pub root: Digest,
    /// Length of a unit in bytes; always [`UNIT_BYTES`] in schema 1.
    pub unit_bytes: u32,
    /// Bytes of all files in the artifact when unpacked: checked against free space beforehand.
    pub unpacked_bytes: u64,
    /// Files, directories and links in the artifact.
    pub entries: u32,
    /// Ways to build the artifact from an older one; a reader ignores those it cannot use.
    pub deltas: Vec<Delta>,
    /// Protocols and formats that the release reads and writes.
    pub protocols: Protocols,
    /// Names of schemas (of databases, of messages) that the release needs.
    pub schemas: BTreeSet<String>,
    pub rollback: Rollback,
    /// When it was published, in UTC, without fractions of a second.
    pub created_at: Timestamp,
}

/// How an artifact is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Format {
    #[serde(rename = "tar")]
    Tar,
    #[serde(rename = "tar.gz")]
    TarGz,
    #[serde(rename = "tar.zst")]
    TarZst,
}

/// One way to build this artifact from an older one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Delta {
    /// BLAKE3 root of the old artifact.
    pub from: Digest,
    /// How to apply it; see [`crate::Method`].
    pub method: String,
    pub length: u64,
    /// BLAKE3 root of the delta; its bytes are at `blobs/<root>`.
    pub root: Digest,
}

/// Protocols and formats on the wire and on disk, by names such as `orders/2`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Protocols {
    #[serde(default)]
    pub reads: BTreeSet<String>,
    #[serde(default)]
    pub writes: BTreeSet<String>,
}

/// Parses `revert`, `freeze` or `forward-only`, as on the command line.
///
/// # Errors
/// If it is none of these.
pub fn parse_rollback(text: &str) -> Result<Rollback, ManifestError> {
    match text {
        "revert" => Ok(Rollback::Revert),
        "freeze" => Ok(Rollback::Freeze),
        "forward-only" => Ok(Rollback::ForwardOnly),
        other => Err(ManifestError::Invalid {
            field: "rollback",
            reason: format!("`{other}` is none of revert, freeze, forward-only"),
        }),
    }
}

/// Why bytes are not a manifest.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    #[error("cannot parse the manifest or channel")]
    Json(#[source] serde_json::Error),
    #[error("manifest or channel of {length} bytes is longer than {limit_bytes}")]
    TooLong { length: u64, limit_bytes: u64 },
    #[error(
        "manifest or channel has schema {found}, this program reads up to {newest}: \
         upgrade Cohort on this server"
    )]
    NewerSchema { found: u32, newest: u32 },
    #[error("manifest field `{field}`: {reason}")]
    Invalid { field: &'static str, reason: String },
}

/// Parses a signed JSON file. The schema is checked first, to distinguish a newer file from a
/// damaged one.
pub(crate) fn parse_schema<T: DeserializeOwned>(
    bytes: &[u8],
    limit_bytes: u64,
    newest: u32,
) -> Result<T, ManifestError> {
    #[derive(Deserialize)]
    struct SchemaOnly {
        schema: u32,
    }
    let length = bytes.len() as u64;
    if length > limit_bytes {
        return Err(ManifestError::TooLong { length, limit_bytes });
    }
    let SchemaOnly { schema } = serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
    if schema > newest {
        return Err(ManifestError::NewerSchema { found: schema, newest });
    }
    serde_json::from_slice(bytes).map_err(ManifestError::Json)
}

/// A file as signed and stored.
pub(crate) fn to_json(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value)
        .expect("manifests and channels hold only texts and numbers: serialising cannot fail");
    bytes.push(b'\n');
    bytes
}

impl Manifest {
    /// Parses a manifest and checks every rule that only needs the manifest itself.
    ///
    /// # Errors
    /// If it is too long, has a newer schema, is not JSON, or breaks a rule.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        let manifest: Self = parse_schema(bytes, MANIFEST_BYTES_MAX, MANIFEST_SCHEMA)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The manifest as signed and stored.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        to_json(self)
    }

    /// Checks the rules between fields.
    pub(crate) fn check(&self) -> Result<(), ManifestError> {
        let invalid = |field, reason: String| Err(ManifestError::Invalid { field, reason });
        if self.schema != MANIFEST_SCHEMA {
            return invalid("schema", format!("{} was never in use", self.schema));
        }
        if self.length == 0 || self.length > ARTIFACT_BYTES_MAX {
            return invalid(
                "length",
                format!("{} is not in 1..={ARTIFACT_BYTES_MAX}", self.length),
            );
        }
        if self.unit_bytes != UNIT_BYTES {
            return invalid("unit_bytes", format!("{} is not {UNIT_BYTES}", self.unit_bytes));
        }
        if self.unpacked_bytes > UNPACKED_BYTES_MAX {
            return invalid("unpacked_bytes", format!("more than {UNPACKED_BYTES_MAX}"));
        }
        if self.entries > ENTRIES_MAX {
            return invalid("entries", format!("more than {ENTRIES_MAX}"));
        }
        if self.deltas.len() > LIST_ENTRIES_MAX {
            return invalid("deltas", format!("more than {LIST_ENTRIES_MAX}"));
        }
        if self.created_at.subsec_nanosecond() != 0 {
            return invalid("created_at", "not in whole seconds".to_owned());
        }
        check_names("protocols.reads", &self.protocols.reads)?;
        check_names("protocols.writes", &self.protocols.writes)?;
        check_names("schemas", &self.schemas)
    }
}

/// Number of units of an artifact of `length` bytes.
pub(crate) fn unit_count(length: u64) -> u32 {
    u32::try_from(length.div_ceil(u64::from(UNIT_BYTES)))
        .expect("lengths are checked against ARTIFACT_BYTES_MAX, which has fewer than 2^32 units")
}

fn check_names(field: &'static str, names: &BTreeSet<String>) -> Result<(), ManifestError> {
    if names.len() > LIST_ENTRIES_MAX {
        let reason = format!("{} names are more than {LIST_ENTRIES_MAX}", names.len());
        return Err(ManifestError::Invalid { field, reason });
    }
    let valid = |name: &String| {
        (1..=LIST_NAME_BYTES_MAX).contains(&name.len())
            && name.bytes().all(|b| b.is_ascii_graphic())
    };
    match names.iter().find(|name| !valid(name)) {
        None => Ok(()),
        Some(name) => Err(ManifestError::Invalid {
            field,
            reason: format!(
                "`{}` is not 1 to {LIST_NAME_BYTES_MAX} printable characters without spaces",
                name.chars().take(80).collect::<String>().escape_debug()
            ),
        }),
    }
}

#[cfg(test)]
#[path = "manifest_test.rs"]
mod manifest_test;
