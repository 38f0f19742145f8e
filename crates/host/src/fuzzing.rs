//! This crate's decoders of bytes from elsewhere, for the fuzz targets of `cohort-fuzz`. Callers
//! reach them through files and sockets, thousands of times slower.

use std::path::Path;

use cohort_base::chain;
use cohort_base::golden::round_trip;
use cohort_core::release::Release;

use crate::service_file::ServiceFile;

/// Unpacks an artifact, as when a server prepares a release; returns the text of its `cohort.toml`.
///
/// # Errors
/// Why it is refused.
pub fn unpack(artifact: &Path, release: &Release, part: &Path) -> Result<Option<String>, String> {
    crate::unpack::unpack(artifact, release, part, None).map_err(|error| chain(&error))
}

/// Reads a `cohort.toml`.
///
/// # Errors
/// Why it is refused.
pub fn service_file(text: &str) -> Result<(), String> {
    ServiceFile::parse(text).map(|_| ()).map_err(|error| chain(&error))
}

/// Lines of the guard's socket and event log, its record of services, a release's marker, and what
/// `cohort confine` is asked: whatever decodes, encodes to the same again.
pub fn records(bytes: &[u8]) {
    crate::guard::round_trips(bytes);
    round_trip::<crate::releases::Marker>(bytes);
    round_trip::<crate::confine::Confined>(bytes);
}
