//! Digests as text, for manifests and logs.

use aws_lc_rs::digest::{SHA256, digest as sha_digest};
use cohort_core::ids::Digest;

/// A BLAKE3 hash as a digest.
#[must_use]
pub fn digest_of(hash: &blake3::Hash) -> Digest {
    Digest::new(hash.to_hex().to_string())
        .expect("a BLAKE3 hash is written as 64 hexadecimal digits in lower case")
}

/// The BLAKE3 digest of bytes in memory.
#[must_use]
pub fn digest_of_bytes(bytes: &[u8]) -> Digest {
    digest_of(&blake3::hash(bytes))
}

/// SHA-256 of bytes in memory, as used in TUF metadata.
pub(crate) fn sha256(bytes: &[u8]) -> Vec<u8> {
    sha_digest(&SHA256, bytes).as_ref().to_vec()
}
