//! A channel: a signed pointer from a name such as `stable` to a version of an app.

use cohort_core::ids::{AppId, Channel, Version};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::manifest::ManifestError;

/// Longest channel file; a full one is under 512 bytes.
pub(crate) const CHANNEL_BYTES_MAX: u64 = 4 << 10;

const CHANNEL_SCHEMA: u32 = 1;

/// Content of a channel file. Unknown fields are refused, as in a manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ChannelPointer {
    /// Schema version; 1. First in the file.
    pub schema: u32,
    /// The app.
    pub app: AppId,
    /// The channel.
    pub channel: Channel,
    /// The version that it names.
    pub version: Version,
    /// Increases by one every time the channel is set, also when the version goes back.
    pub serial: u64,
    /// When it was set, in whole seconds of UTC.
    pub set_at: Timestamp,
}

impl ChannelPointer {
    pub(crate) fn new(
        app: AppId,
        channel: Channel,
        version: Version,
        serial: u64,
        set_at: Timestamp,
    ) -> Self {
        Self { schema: CHANNEL_SCHEMA, app, channel, version, serial, set_at }
    }

    /// Reads a channel file.
    ///
    /// # Errors
    /// When it is too long, of another schema, or not of the expected form.
    pub fn parse(bytes: &[u8]) -> Result<Self, ManifestError> {
        if bytes.len() as u64 > CHANNEL_BYTES_MAX {
            return Err(ManifestError::TooLong { length: bytes.len() as u64 });
        }
        let value: serde_json::Value =
            serde_json::from_slice(bytes).map_err(ManifestError::Json)?;
        match value.get("schema").and_then(serde_json::Value::as_u64) {
            Some(newer) if newer > u64::from(CHANNEL_SCHEMA) => {
                Err(ManifestError::NewerSchema { found: u32::try_from(newer).unwrap_or(u32::MAX) })
            }
            _ => serde_json::from_value(value).map_err(ManifestError::Json),
        }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec_pretty(self)
            .expect("a channel holds only texts and numbers: serialising cannot fail");
        bytes.push(b'\n');
        bytes
    }
}
