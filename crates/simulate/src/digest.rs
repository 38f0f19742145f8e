//! Short stand-ins for bytes.

/// The digest of `bytes` after what `start` stands for (FNV-1a).
pub(crate) fn digest(start: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(start ^ 0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}
