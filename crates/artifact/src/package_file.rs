//! `cohort.toml` inside an artifact, as far as signing needs it.
//!
//! The host reads the rest of the file (the service). What is in both is decided at publishing and
//! signed: the manifest wins, and a contradiction between the file and the flags is an error.

use std::collections::{BTreeMap, BTreeSet};

use cohort_core::ids::ProgramName;
use cohort_core::release::Rollback;
use serde::Deserialize;

use crate::manifest::Protocols;

pub use cohort_base::archive::SERVICE_FILE as PACKAGE_FILE;

/// The keys of a `cohort.toml` that go into the manifest; those for the host are ignored here.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct PackageFile {
    pub rollback: Option<Rollback>,
    pub protocols: Option<Protocols>,
    pub schemas: Option<BTreeSet<String>>,
    /// The checks that a policy may name. Not signed in the manifest: a host takes them from the
    /// verified bytes.
    #[serde(default)]
    pub checks: BTreeMap<ProgramName, DeclaredCheck>,
}

/// A check; what it runs is the host's to read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct DeclaredCheck {}

/// Why a `cohort.toml` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PackageFileError {
    #[error("cannot parse the artifact's {PACKAGE_FILE}")]
    Toml(#[source] Box<toml::de::Error>),
    /// Servers would refuse it.
    #[error("servers would refuse it: {0}")]
    Refused(String),
    #[error(
        "`{field}` is {outside} outside and {inside} in the artifact's {PACKAGE_FILE}: \
         change one of them"
    )]
    Contradiction { field: &'static str, outside: String, inside: String },
}

impl PackageFile {
    /// Reads the file's bytes.
    ///
    /// # Errors
    /// If it is not TOML, or a signed key is malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self, PackageFileError> {
        toml::from_slice(bytes).map_err(|error| PackageFileError::Toml(Box::new(error)))
    }
}

/// The value of a flag or of the file; an error if they differ.
pub(crate) fn merge<T: PartialEq + std::fmt::Debug>(
    field: &'static str,
    outside: Option<T>,
    inside: Option<T>,
) -> Result<Option<T>, PackageFileError> {
    match (outside, inside) {
        (Some(outside), Some(inside)) if outside != inside => {
            Err(PackageFileError::Contradiction {
                field,
                outside: format!("{outside:?}"),
                inside: format!("{inside:?}"),
            })
        }
        (outside, inside) => Ok(outside.or(inside)),
    }
}
