//! The contract: requests, answers, limits and the trait.
//!
//! Modelled on etcd v3, so that an etcd backend needs translation only. It is narrower than etcd:
//! keys and values are UTF-8 text, a watch is a long poll, a transaction compares modification
//! revisions only, and makes puts and deletes only if all of them hold.

use async_trait::async_trait;
use cohort_base::Cause;
use serde::{Deserialize, Serialize};

use crate::attest::Attestation;

/// The longest key. The longest of the layout, a verdict's with four names, needs 420.
pub const KEY_BYTES_MAX: usize = 512;
/// The longest value. A group's record needs a few KiB; this leaves room and stays below etcd's
/// limit of 1.5 MiB per request.
pub const VALUE_BYTES_MAX: usize = 256 * 1024;
/// Operations, and comparisons, in one transaction: etcd's default.
pub const TXN_OPS_MAX: usize = 128;
/// Keys and values in one transaction: below etcd's 1.5 MiB per request.
pub const TXN_BYTES_MAX: usize = 1024 * 1024;
/// Pairs in one answer; the rest is read by asking again with `after`.
pub const RANGE_ITEMS_MAX: u32 = 10_000;
/// Bytes in one answer, which may exceed this by one value.
pub const RANGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Events in one answer of a watch; a few more if a revision would be split otherwise.
pub const WATCH_EVENTS_MAX: usize = 1_000;
/// The longest wait of a watch, in milliseconds: below the idle timeouts of common proxies.
pub const WATCH_WAIT_MS_MAX: u64 = 60_000;

const _: () = assert!(TXN_BYTES_MAX > VALUE_BYTES_MAX + KEY_BYTES_MAX, "a single put fits");
const _: () = assert!(RANGE_BYTES_MAX > VALUE_BYTES_MAX, "a single pair fits");

/// A key, its value and its revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyValue {
    /// UTF-8, at most [`KEY_BYTES_MAX`].
    pub key: String,
    /// UTF-8, at most [`VALUE_BYTES_MAX`].
    pub value: String,
    /// The revision of the last write.
    pub mod_revision: u64,
}

/// The keys of a range or a watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Selector {
    Key(String),
    Prefix(String),
}

impl Selector {
    /// Whether the key is selected.
    #[must_use]
    pub fn matches(&self, key: &str) -> bool {
        match self {
            Selector::Key(exact) => key == exact,
            Selector::Prefix(prefix) => key.starts_with(prefix.as_str()),
        }
    }

    /// The key or the prefix.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Selector::Key(text) | Selector::Prefix(text) => text,
        }
    }
}

/// Reads pairs in key order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangeRequest {
    pub select: Selector,
    /// Only keys after this one: to continue when `more` was true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// The most pairs; 0 and anything above [`RANGE_ITEMS_MAX`] mean that limit.
    #[serde(default)]
    pub limit: u32,
}

/// Pairs at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangeAnswer {
    /// In key order.
    pub items: Vec<KeyValue>,
    /// The registry's revision at the read.
    pub revision: u64,
    /// Whether a limit truncated the answer.
    pub more: bool,
}

/// One condition of a transaction: the key was last written at this revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compare {
    /// May be missing.
    pub key: String,
    /// 0 for a missing key.
    pub mod_revision: u64,
}

impl Compare {
    /// The key does not exist.
    #[must_use]
    pub fn absent(key: impl Into<String>) -> Self {
        Compare::unchanged_since(key, 0)
    }

    /// The key was last written at this revision (0: it does not exist).
    #[must_use]
    pub fn unchanged_since(key: impl Into<String>, mod_revision: u64) -> Self {
        Compare { key: key.into(), mod_revision }
    }
}

/// One change of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Op {
    /// Creates a pair, or replaces its value.
    Put { key: String, value: String },
    /// The key may be missing.
    Delete { key: String },
}

impl Op {
    /// Creates the pair, or replaces its value.
    #[must_use]
    pub fn put(key: impl Into<String>, value: impl Into<String>) -> Self {
        Op::Put { key: key.into(), value: value.into() }
    }

    /// The key it changes.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }
}

/// If all comparisons hold, makes all changes; otherwise none.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Txn {
    /// Conditions; none means true.
    #[serde(default)]
    pub compare: Vec<Compare>,
    /// Changes if they hold; each key at most once.
    #[serde(default)]
    pub then: Vec<Op>,
    /// Members that stand behind the changes of their group's records; only the hub asks for them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attested: Vec<Attestation>,
}

/// The outcome of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TxnAnswer {
    pub succeeded: bool,
    /// The registry's revision after it, which is that of its own writes, if any.
    pub revision: u64,
}

/// Asks for changes, and waits if there are none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchRequest {
    pub select: Selector,
    /// The first revision of interest; 0: from now on.
    pub from_revision: u64,
    /// The longest wait in milliseconds; at most [`WATCH_WAIT_MS_MAX`].
    pub wait_ms: u64,
}

/// Changes up to a revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchAnswer {
    /// In revision order; empty when the wait ended first.
    pub events: Vec<Event>,
    /// The answer is complete up to this revision: ask next from the one after it.
    pub revision: u64,
}

/// A watch's answer on the wire, including the errors that the client handles.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum WatchReply {
    /// What changed; nothing if the wait ended first.
    Changed(WatchAnswer),
    /// [`RegistryError::Compacted`].
    Compacted { compacted: u64, revision: u64 },
    /// [`RegistryError::WentBack`].
    WentBack { asked: u64, revision: u64 },
}

/// A change of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// A key was written.
    Put(KeyValue),
    /// A key was removed, at this revision.
    Deleted { key: String, revision: u64 },
}

impl Event {
    /// The changed key.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Event::Put(pair) => &pair.key,
            Event::Deleted { key, .. } => key,
        }
    }

    /// The revision of the change.
    #[must_use]
    pub fn revision(&self) -> u64 {
        match self {
            Event::Put(pair) => pair.mod_revision,
            Event::Deleted { revision, .. } => *revision,
        }
    }
}

/// Why a request to the registry failed.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The request breaks a limit or contradicts itself; retrying is useless.
    #[error("registry request rejected: {reason}")]
    Invalid { reason: String },
    /// The events were dropped: read everything, then watch from the revision after it.
    #[error(
        "registry history up to revision {compacted} is compacted (now at {revision}); \
         read again, then watch from there"
    )]
    Compacted { compacted: u64, revision: u64 },
    /// The client has seen a revision that this registry has not reached: it was restored from a
    /// backup, or it is another registry.
    #[error("registry is at revision {revision}, but {asked} was seen before: it went backwards")]
    WentBack { asked: u64, revision: u64 },
    /// The registry may come from a backup: until an operator confirms that, it issues no number
    /// that it may have issued before.
    #[error(
        "registry was lost, or restored from a backup: until that is confirmed, it starts no \
         group, accepts no policy and removes no app"
    )]
    RestoredUnconfirmed,
    #[error("registry is full: {bytes} bytes of {bytes_max}; remove what is no longer needed")]
    Full { bytes: usize, bytes_max: usize },
    #[error("registry key `{key}` has no valid record")]
    Corrupt { key: String, source: Cause },
    /// Others kept changing the same key; retry later.
    #[error("registry key `{key}` was changed by others {attempts} times in a row")]
    Contended { key: String, attempts: u32 },
    /// The registry is unreachable or overloaded: rollouts in progress continue, none starts.
    #[error("registry is unavailable: {reason}")]
    Unavailable { reason: String },
    /// Something newer is stored: read, then decide.
    #[error("registry rejected a change: {reason}")]
    Conflict { reason: String },
    #[error("registry denied access: {reason}")]
    Forbidden { reason: String },
    /// The hub answered that its registry cannot do it until somebody repairs it.
    #[error("registry cannot work: {reason}")]
    Broken { reason: String },
    /// The registry's disk failed; the hub must be restarted.
    #[error("registry storage failed: could not {action}")]
    Storage { action: &'static str, source: Cause },
}

/// A registry. Object safe; share it as `Arc<dyn Registry>`.
#[async_trait]
pub trait Registry: Send + Sync {
    /// Reads pairs.
    ///
    /// # Errors
    /// [`RegistryError`]; never `Compacted`, because reads return the current state only.
    async fn range(&self, request: RangeRequest) -> Result<RangeAnswer, RegistryError>;

    /// Changes pairs, all or nothing. The change is durable when this returns.
    ///
    /// # Errors
    /// [`RegistryError`]. After `Unavailable` or `Storage` the change may or may not have been
    /// made: read, then decide.
    async fn txn(&self, txn: Txn) -> Result<TxnAnswer, RegistryError>;

    /// Waits for changes.
    ///
    /// # Errors
    /// [`RegistryError`], `Compacted` and `WentBack` among them: read everything again.
    async fn watch(&self, request: WatchRequest) -> Result<WatchAnswer, RegistryError>;
}
