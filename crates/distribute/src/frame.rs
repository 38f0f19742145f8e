//! A unit with its index, as sent in a subscription: received and forwarded in one buffer.

use bytes::Bytes;

/// The index of a heartbeat frame.
pub(crate) const ALIVE: u32 = u32::MAX;

/// Bytes of an index: big endian.
pub(crate) const INDEX_BYTES: usize = 4;

/// A unit preceded by its index, in one buffer.
#[derive(Debug, Clone)]
pub(crate) struct Frame {
    index: u32,
    bytes: Bytes,
}

impl Frame {
    /// A buffer that contains the index and has room for a unit of `length` bytes.
    pub(crate) fn room(index: u32, length: usize) -> Vec<u8> {
        let mut room = Vec::with_capacity(INDEX_BYTES + length);
        room.extend_from_slice(&index.to_be_bytes());
        room
    }

    /// The frame, once the unit has been appended to the index.
    pub(crate) fn new(index: u32, room: Vec<u8>) -> Self {
        Self { index, bytes: room.into() }
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    /// The unit without its index.
    pub(crate) fn unit(&self) -> &[u8] {
        self.bytes.get(INDEX_BYTES..).unwrap_or_default()
    }

    /// The index, then the unit.
    pub(crate) fn bytes(&self) -> &Bytes {
        &self.bytes
    }
}
