//! Deltas: build a new artifact from an old one on the server and a small patch.
//!
//! Compressed artifacts do not resemble their predecessors. So a delta is made between the two
//! *archives* inside, and the server that applies it compresses the result again, with the library
//! and level that [`Method`] names. Before signing, the publisher applies the delta and checks that
//! the result is the exact artifact; a server checks the result against the artifact's root, like
//! everything else. A failure costs a delta, never a release.
//!
//! ```text
//! offset size
//!      0    8  "COHDELT1"
//!      8    8  length of the old archive in bytes (all numbers little-endian)
//!     16    8  length of the new archive in bytes
//!     24       records, until the new archive is complete; nothing follows the last:
//!              1  0: copy from the old archive
//!              8  offset in the old archive
//!              8  length
//!         or   1  1: patch
//!              8  offset of the window in the old archive
//!              4  length of the window, at most 32 MiB
//!              4  bytes that this produces, at most 16 MiB
//!            4*4  lengths of the four streams: steps, distances, differences, new bytes
//!              4  length of the zstd frame that contains the streams, one after another
//!              n  the frame
//! ```
//!
//! Start reading at [`DeltaMaker`] (the publisher) and [`apply_delta`] (the server); `matching`
//! makes a segment, `layout` decides which files are compared.

mod apply;
mod archive;
mod format;
mod layout;
mod make;
mod matching;
mod method;
mod segment;

use std::io;

pub use apply::{DeltaInput, apply_delta};
pub use make::DeltaMaker;
pub use method::Method;

/// Why a delta cannot be made or applied. Harmless: the whole artifact is always available.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    #[error("cannot read the artifact that the delta starts from")]
    Base(#[source] io::Error),
    #[error("cannot read the delta")]
    Delta(#[source] io::Error),
    #[error("cannot write the result of the delta")]
    Result(#[source] io::Error),
    /// No room for an unpacked archive, or the disk failed.
    #[error("cannot write the unpacked archive")]
    Scratch(#[source] io::Error),
    /// Not a delta, or one that our publishers never make.
    #[error("the delta is damaged: it holds {what}")]
    Malformed { what: &'static str },
    /// A method unknown to this program, or that needs another compression library.
    #[error("the delta's method `{method}` is not one that this program can apply")]
    Method { method: String },
    #[error("{what} is longer than {limit_bytes} bytes")]
    TooLong { what: &'static str, limit_bytes: u64 },
    /// The old artifact is not the one that the delta was made from.
    #[error("the artifact that the delta starts from unpacks to another length")]
    OtherBase,
    #[error("the result of the delta is not the signed artifact")]
    Wrong,
    #[error("the work on the delta was stopped")]
    Stopped,
}

#[cfg(test)]
mod delta_test;
