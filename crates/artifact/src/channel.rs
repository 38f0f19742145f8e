//! A channel: a signed pointer from a name such as `stable` to a version of an app.

use cohort_core::ids::{AppId, Channel, Version};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::manifest::{ManifestError, parse_schema, to_json};

/// Longest channel file, in bytes; a full one is under 512.
pub(crate) const CHANNEL_BYTES_MAX: u64 = 4 << 10;

pub(crate) const CHANNEL_SCHEMA: u32 = 1;

/// Content of a channel file. Unknown fields are rejected, as in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelPointer {
    /// Schema version; 1. First in the file.
    pub schema: u32,
    pub app: AppId,
    pub channel: Channel,
    pub version: Version,
    /// Increases by one every time the channel is set, even if the version goes back.
    pub serial: u64,
    /// When it was set, in UTC, without fractions of a second.
    pub set_at: Timestamp,
}

impl ChannelPointer {
    /// Reads a channel file.
    ///
    /// # Errors
    /// If it is too long, has another schema, or is malformed.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        parse_schema(bytes, CHANNEL_BYTES_MAX, CHANNEL_SCHEMA)
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        to_json(self)
    }
}
