//! This crate's decoders of bytes from elsewhere, for the fuzz targets of `cohort-fuzz`.

use bytes::Bytes;

use crate::files::SmallFile;
use crate::request::{Wanted, parse_range};

/// The first and last byte that a `Range` header asks for in a file of `length` bytes; `None` if
/// it asks for no part of it.
#[must_use]
pub fn range(text: &str, length: u64) -> Option<(u64, u64)> {
    match parse_range(text, length) {
        Wanted::Part { first, last } => Some((first, last)),
        Wanted::Whole | Wanted::Outside => None,
    }
}

/// Reads a small file of the cache at `path`; returns it as it would be written, and its content.
#[must_use]
pub fn small_file(bytes: &Bytes, path: &str) -> Option<(Bytes, Bytes)> {
    let file = SmallFile::parse(bytes, path)?;
    Some((file.to_bytes().into(), file.body))
}
