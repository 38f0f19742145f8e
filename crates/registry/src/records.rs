//! The records, one struct per kind.
//!
//! Records are JSON. Unknown fields are ignored, so that a later version may add some; a change of
//! meaning raises the schema, and an unknown schema is rejected.

use std::collections::BTreeMap;

use cohort_base::Cause;
use cohort_core::ids::{AppId, GroupId, Incarnation, MemberId, Platform, ServerId, Version};
use cohort_core::phase::PhaseName;
use cohort_core::reason::Reason;
use cohort_wire::intent::SignedIntent;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::api::{KeyValue, RegistryError};

/// The schema of all records of this version.
pub const SCHEMA: u32 = 1;
/// A reason or other text in a record; the writer truncates longer ones.
pub const TEXT_BYTES_MAX: usize = 4096;

/// When a group wrote a record, in its own order of events. Fences late writers.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Stamp {
    pub incarnation: Incarnation,
    /// The Raft term of the decision.
    pub term: u64,
    /// The log index of the decision.
    pub index: u64,
}

/// A record that only its group writes; a newer one is never replaced by an older one.
pub trait Fenced {
    fn stamp(&self) -> Stamp;
}

/// A server that has joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    pub schema: u32,
    pub server: ServerId,
    /// Its peer port, `host:port`.
    pub address: String,
    /// Grouping labels, such as `platform` and `zone`.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    /// Its group, assigned by the hub when it joined.
    pub group: GroupId,
}

/// What the hub records of a group when its first server joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupInfo {
    pub schema: u32,
    pub group: GroupId,
    /// The labels shared by its servers; stages select by them.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    pub platform: Platform,
}

/// The server that starts a group's incarnation. The incarnation itself is the key's modification
/// revision, which no registry issues twice, unless the record names it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootstrapRecord {
    pub schema: u32,
    pub group: GroupId,
    /// The incarnation that the group is in, if the registry had lost this record, and a member of
    /// the group wrote it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Incarnation>,
    pub first_server: ServerId,
    /// The operator's reason for ending the previous incarnation, if there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered_because: Option<String>,
}

impl BootstrapRecord {
    /// Of a group that is in this incarnation, written again by a server of it.
    #[must_use]
    pub fn restored(group: GroupId, incarnation: Incarnation, server: ServerId) -> Self {
        let (schema, first_server, incarnation) = (SCHEMA, server, Some(incarnation));
        BootstrapRecord { schema, group, incarnation, first_server, recovered_because: None }
    }
}

/// A group's incarnation and the server that started it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    pub incarnation: Incarnation,
    /// The server that bootstraps, or bootstrapped, the group; or that restored this record.
    pub first_server: ServerId,
    /// A member wrote the record again: nobody bootstraps the group, and no member retires because
    /// of it.
    pub restored: bool,
}

impl Bootstrap {
    /// The meaning of a record that was last written at this revision.
    #[must_use]
    pub fn of(record: BootstrapRecord, mod_revision: u64) -> Self {
        let BootstrapRecord { incarnation, first_server, .. } = record;
        let restored = incarnation.is_some();
        let incarnation = incarnation.unwrap_or(Incarnation(mod_revision));
        Bootstrap { incarnation, first_server, restored }
    }
}

/// The members of a group and their addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembersRecord {
    pub schema: u32,
    pub group: GroupId,
    #[serde(flatten)]
    pub stamp: Stamp,
    pub members: Vec<MemberRecord>,
}

/// One member of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    pub server: ServerId,
    /// Its peer port, `host:port`.
    pub address: String,
    pub member: MemberId,
    /// False for a standby.
    pub voter: bool,
}

/// An app's state in a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    pub schema: u32,
    pub group: GroupId,
    pub app: AppId,
    #[serde(flatten)]
    pub stamp: Stamp,
    /// Counts this group's records of this app: without a gap none was missed.
    pub sequence: u64,
    /// The phase, such as `running` or `held`.
    pub state: PhaseName,
    /// The version that the whole group runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<Version>,
    /// The version it is moving to, during a rollout or roll-back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Version>,
    /// The reason, if held or rolling back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_reason: Option<Reason>,
    /// When the record was written, in Unix seconds by the writer's clock; for people only.
    #[serde(default)]
    pub since: u64,
}

/// A group's verdict about a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictRecord {
    pub schema: u32,
    /// For other groups' gates: why the release is bad; none: it is good.
    #[serde(deserialize_with = "Option::deserialize")]
    pub bad: Option<Reason>,
    #[serde(flatten)]
    pub stamp: Stamp,
}

/// A verdict with its group and release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupVerdict {
    pub app: AppId,
    pub version: Version,
    pub platform: Platform,
    pub group: GroupId,
    pub record: VerdictRecord,
}

/// What an operator wants of an app, with the proof: its policy, or that it was removed. A removal
/// stays until the app gets a policy again: a group that was away stops the app when it is back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntentRecord {
    pub schema: u32,
    pub signed: SignedIntent,
}

macro_rules! fenced {
    ($($name:ident)*) => {
        $(impl Fenced for $name {
            fn stamp(&self) -> Stamp {
                self.stamp
            }
        })*
    };
}
fenced!(MembersRecord GroupRecord VerdictRecord);

/// A record as stored text.
pub fn encode<T: Serialize>(record: &T) -> String {
    serde_json::to_string(record).expect("records have text keys and no failing serializers")
}

/// Parses a stored record.
///
/// # Errors
/// `Corrupt` when it is not a record of this kind or has an unknown schema.
pub fn decode<T: DeserializeOwned>(pair: &KeyValue) -> Result<T, RegistryError> {
    #[derive(Deserialize)]
    struct Envelope {
        schema: u32,
    }
    let read = || -> Result<T, Cause> {
        let envelope: Envelope = serde_json::from_str(&pair.value)?;
        if envelope.schema != SCHEMA {
            let reason = format!("schema {}, this version supports {SCHEMA}", envelope.schema);
            return Err(reason.into());
        }
        Ok(serde_json::from_str(&pair.value)?)
    };
    read().map_err(|source| RegistryError::Corrupt { key: pair.key.clone(), source })
}

/// Truncates a text to [`TEXT_BYTES_MAX`], at a character boundary.
#[must_use]
pub fn bounded(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
    text
}
