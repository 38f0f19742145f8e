//! What is kept: one struct per kind of record, its schema first.
//!
//! Records are JSON. Unknown fields are passed over, so that a later version may add some; what
//! changes a meaning raises the schema, and a schema that is not known is refused.

use std::collections::BTreeMap;

use cohort_core::ids::{
    AppId, GroupId, Incarnation, MemberId, Platform, Revision, ServerId, Version,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::api::{KeyValue, RegistryError};

/// The schema of every record that this version writes.
pub const SCHEMA: u32 = 1;
/// The longest text of a reason or a state in a record, in bytes; longer ones are cut by the writer.
pub const TEXT_BYTES_MAX: usize = 4096;

/// Where in a group's life something was written: what makes a late writer harmless. Ordered.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize,
)]
pub struct Stamp {
    /// Which life of the group.
    pub incarnation: Incarnation,
    /// The Raft term in which it was decided.
    pub term: u64,
    /// The index in the log of what it tells.
    pub index: u64,
}

/// A record that only the group itself writes, and never an older one over a newer one.
pub trait Fenced {
    /// Where in the group's life it was written.
    fn stamp(&self) -> Stamp;
}

/// A server, as it joined.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRecord {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Which server.
    pub server: ServerId,
    /// Its peer port, `host:port`.
    pub address: String,
    /// What is known of it; `platform` and `zone` among them, if given.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// Its failure domain, if known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rack: Option<String>,
    /// The group that it belongs to: decided by the hub at joining.
    pub group: GroupId,
}

/// What a group is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupInfo {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Which group.
    pub group: GroupId,
    /// The labels that all its servers share; stages select by them.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// The platform whose artifacts it runs.
    pub platform: Platform,
}

/// The server that begins a group's life.
///
/// The incarnation is not in the text: it is the revision at which the key was last written, which
/// no registry gives out twice.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootstrapRecord {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Which group.
    pub group: GroupId,
    /// The server that makes the first member.
    pub first_server: ServerId,
    /// Why an older life was ended, when there was one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recovered_because: Option<String>,
}

/// Which life of a group this is, and who began it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Which life.
    pub incarnation: Incarnation,
    /// The server that makes (or made) the first member.
    pub first_server: ServerId,
}

/// Where a group's members are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembersRecord {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Which group.
    pub group: GroupId,
    /// Fences late writers.
    #[serde(flatten)]
    pub stamp: Stamp,
    /// Voters and standbys.
    pub members: Vec<MemberRecord>,
}

/// One member of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberRecord {
    /// The server that carries it.
    pub server: ServerId,
    /// Its peer port, `host:port`.
    pub address: String,
    /// Its number in Raft.
    pub member: MemberId,
    /// Voter or standby.
    pub voter: bool,
}

/// How far a group is with an app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Which group.
    pub group: GroupId,
    /// Which app.
    pub app: AppId,
    /// Fences late writers.
    #[serde(flatten)]
    pub stamp: Stamp,
    /// Counts this group's records of this app; no gap means none was missed.
    pub sequence: u64,
    /// The name of the group's state, such as `running` or `held`.
    pub state: String,
    /// What the whole group runs, if anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub running: Option<Version>,
    /// Where it goes, if a rollout or roll-back is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<Version>,
    /// Why it is held, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_reason: Option<String>,
    /// One line for people about how far it is, such as `wave 2 of 5`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub detail: String,
    /// Since when it is in this state: seconds since 1970 on the writer's clock; for people only.
    #[serde(default)]
    pub since: u64,
}

/// What a group thinks of a release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerdictRecord {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Good or bad.
    pub verdict: Verdict,
    /// Why, in words; empty when good.
    #[serde(default)]
    pub reason: String,
    /// Fences late writers.
    #[serde(flatten)]
    pub stamp: Stamp,
}

/// Good or bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The whole group baked it.
    Good,
    /// The group refused it or went back from it.
    Bad,
}

/// A verdict and whose it is of what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupVerdict {
    /// Which app.
    pub app: AppId,
    /// Which version.
    pub version: Version,
    /// For which platform.
    pub platform: Platform,
    /// Whose verdict.
    pub group: GroupId,
    /// What it says.
    pub record: VerdictRecord,
}

/// An app's policy, as a person gave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// [`SCHEMA`].
    pub schema: u32,
    /// Which app.
    pub app: AppId,
    /// The policy as JSON; whoever uses it parses it with its own version's rules.
    pub policy: serde_json::Value,
    /// Who gave it.
    pub by: String,
    /// When: seconds since 1970 on the hub's clock; for people only.
    pub at: u64,
}

/// A policy and its revision, which a rollout pins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionedPolicy {
    /// The revision of its last change.
    pub revision: Revision,
    /// The policy.
    pub record: PolicyRecord,
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

/// Writes a record as the text that is stored.
pub fn encode<T: Serialize>(record: &T) -> String {
    serde_json::to_string(record).expect("records have text keys and no failing serializers")
}

/// Reads a stored record.
///
/// # Errors
/// `Corrupt`, when it is no record of this kind or has a schema that this version does not know.
pub fn decode<T: DeserializeOwned>(pair: &KeyValue) -> Result<T, RegistryError> {
    #[derive(Deserialize)]
    struct Envelope {
        schema: u32,
    }
    let corrupt = |reason| RegistryError::Corrupt { key: pair.key.clone(), reason };
    let envelope: Envelope =
        serde_json::from_str(&pair.value).map_err(|error| corrupt(error.to_string()))?;
    if envelope.schema != SCHEMA {
        let reason = format!("schema {}; this version knows {SCHEMA}", envelope.schema);
        return Err(corrupt(reason));
    }
    serde_json::from_str(&pair.value).map_err(|error| corrupt(error.to_string()))
}

/// Cuts a text to [`TEXT_BYTES_MAX`], at a character.
#[must_use]
pub fn bounded(mut text: String) -> String {
    if text.len() > TEXT_BYTES_MAX {
        let mut end = TEXT_BYTES_MAX;
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    text
}
