//! Deltas: a new artifact out of one that a server holds, and few bytes.
//!
//! Artifacts are compressed, and what is compressed does not resemble its predecessor. So a delta
//! is made between the two *archives* inside, and the new artifact is compressed again by whoever
//! applies it, with the same library and level, which [`Method`] names. The publisher proves by
//! doing it that the result is the very artifact before it signs; a server checks the result by the
//! artifact's root like everything else. Whatever fails costs a delta, never a release.
//!
//! ```text
//! offset size
//!      0    8  "COHDELT1"
//!      8    8  length of the old archive in bytes (all numbers little-endian)
//!     16    8  length of the new archive in bytes
//!     24       records, until the new archive is whole; nothing follows the last one:
//!              1  0: the same bytes as in the old archive
//!              8  where in the old archive
//!              8  how many
//!         or   1  1: patched
//!              8  beginning of the window in the old archive
//!              4  length of the window, at most 32 MiB
//!              4  bytes that this makes, at most 16 MiB
//!            4*4  lengths of the four streams: steps, distances, differences, new bytes
//!              4  length of the zstd frame that holds the streams, one after the other
//!              n  the frame
//! ```
//!
//! Start reading at [`DeltaMaker`] (the publisher) and [`apply_delta`] (the server); how a
//! segment is made is in `matching`, who is compared with whom in `layout`.

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
pub use make::{DeltaMaker, MadeDelta};
pub use method::Method;

/// Why a delta cannot be made or applied. Harmless: the whole artifact is always there.
#[derive(Debug, thiserror::Error)]
pub enum DeltaError {
    /// The old artifact cannot be read or unpacked.
    #[error("the artifact that the delta starts from cannot be read")]
    Base(#[source] io::Error),
    /// The delta cannot be read.
    #[error("the delta cannot be read")]
    Delta(#[source] io::Error),
    /// The result cannot be written.
    #[error("what the delta makes cannot be written")]
    Result(#[source] io::Error),
    /// Room for an unpacked archive is needed.
    #[error("the unpacked archive cannot be written")]
    Scratch(#[source] io::Error),
    /// Not a delta, or one that nobody sane has made.
    #[error("the delta is damaged: it holds {what}")]
    Malformed {
        /// What is wrong with it.
        what: &'static str,
    },
    /// Made by a way that this program does not know, or for another compression library.
    #[error("the delta's method `{method}` is not one that this program can apply")]
    Method {
        /// As the manifest names it.
        method: String,
    },
    /// Longer than it may be.
    #[error("{what} is longer than {limit_bytes} bytes")]
    TooLong {
        /// What is.
        what: &'static str,
        /// The limit in bytes.
        limit_bytes: u64,
    },
    /// The old artifact is not the one that the delta was made from.
    #[error("the artifact that the delta starts from unpacks to another length")]
    OtherBase,
    /// The result is not the artifact that was signed.
    #[error("what the delta makes is not the signed artifact")]
    Wrong,
    /// The caller asked to stop.
    #[error("the work on the delta was stopped")]
    Stopped,
}

#[cfg(test)]
mod delta_test;
