//! The contract: requests, answers, limits and the trait.
//!
//! After etcd v3, so that an etcd backend is a translation and not a redesign. Differences, all of
//! them narrower than etcd: keys and values are UTF-8 text, a watch is a long poll, and a
//! transaction holds only puts and deletes.

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// The longest key, in bytes. The deepest key of the layout (a verdict: four names) needs 420.
pub const KEY_BYTES_MAX: usize = 512;
/// The longest value, in bytes. A group record with a thousand member-less servers needs a few KiB;
/// a quarter of a MiB leaves room and stays below etcd's own limit of 1.5 MiB per request.
pub const VALUE_BYTES_MAX: usize = 256 * 1024;
/// The most operations, and the most comparisons, of one transaction: etcd's own default.
pub const TXN_OPS_MAX: usize = 128;
/// The most values in bytes that one transaction may carry: below etcd's 1.5 MiB per request.
pub const TXN_BYTES_MAX: usize = 1024 * 1024;
/// The most pairs in one answer; more are fetched by asking again with `after`.
pub const RANGE_ITEMS_MAX: u32 = 10_000;
/// About how many bytes one answer may hold: a client need never buffer more than this and a value.
pub const RANGE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// The most events in one answer of a watch (a revision is never split, so a few more may come).
pub const WATCH_EVENTS_MAX: usize = 1_000;
/// The longest that one watch waits, in milliseconds: below the idle limits of common proxies.
pub const WATCH_WAIT_MS_MAX: u64 = 60_000;

const _: () = assert!(TXN_BYTES_MAX > VALUE_BYTES_MAX + KEY_BYTES_MAX, "a single put fits");
const _: () = assert!(RANGE_BYTES_MAX > VALUE_BYTES_MAX, "a single pair fits");

/// One key and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyValue {
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// The revision at which the key came to be (again).
    pub create_revision: u64,
    /// The revision of the last write.
    pub mod_revision: u64,
    /// How many writes since the key came to be; the first is 1.
    pub version: u64,
}

/// Which keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Selector {
    /// This one.
    Key(String),
    /// All that begin so.
    Prefix(String),
}

impl Selector {
    /// Whether a key is meant.
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

/// Asks for pairs, in the order of their keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangeRequest {
    /// Which keys.
    pub select: Selector,
    /// Only keys after this one: how to go on when `more` was true.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
    /// At most so many; 0 and anything above [`RANGE_ITEMS_MAX`] mean that limit.
    #[serde(default)]
    pub limit: u32,
}

/// The pairs, all as of one revision.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RangeAnswer {
    /// In the order of their keys.
    pub items: Vec<KeyValue>,
    /// The registry's revision when they were read.
    pub revision: u64,
    /// Whether a limit cut the answer short.
    pub more: bool,
}

/// How a comparison is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Comparison {
    /// What is there equals what is given.
    Equal,
    /// What is there differs.
    NotEqual,
    /// What is there is greater.
    Greater,
    /// What is there is less.
    Less,
}

/// What is compared, and with what. A key that is not there has revisions and version 0.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Field {
    /// The revision at which the key came to be; 0: it is not there.
    CreateRevision(u64),
    /// The revision of the last write; 0: it is not there.
    ModRevision(u64),
    /// The number of writes; 0: it is not there.
    Version(u64),
    /// The value; on a key that is not there every comparison with a value is false.
    Value(String),
}

/// One condition of a transaction.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Compare {
    /// Which key.
    pub key: String,
    /// How.
    pub is: Comparison,
    /// With what.
    pub than: Field,
}

impl Compare {
    /// The key is not there.
    #[must_use]
    pub fn absent(key: impl Into<String>) -> Self {
        Compare { key: key.into(), is: Comparison::Equal, than: Field::CreateRevision(0) }
    }

    /// The key was last written at this revision (0: it is not there).
    #[must_use]
    pub fn unchanged_since(key: impl Into<String>, mod_revision: u64) -> Self {
        Compare { key: key.into(), is: Comparison::Equal, than: Field::ModRevision(mod_revision) }
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Op {
    /// Write a pair.
    Put {
        /// Where.
        key: String,
        /// What.
        value: String,
    },
    /// Remove a pair; nothing happens when it is not there.
    Delete {
        /// Where.
        key: String,
    },
}

impl Op {
    /// Write a pair.
    #[must_use]
    pub fn put(key: impl Into<String>, value: impl Into<String>) -> Self {
        Op::Put { key: key.into(), value: value.into() }
    }

    /// The key that is changed.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }
}

/// If all comparisons hold then one list, otherwise the other; all of it or nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Txn {
    /// All must hold.
    #[serde(default)]
    pub compare: Vec<Compare>,
    /// Done when they hold. A key may be named once.
    #[serde(default)]
    pub then: Vec<Op>,
    /// Done when they do not. A key may be named once.
    #[serde(default)]
    pub otherwise: Vec<Op>,
}

/// What became of a transaction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TxnAnswer {
    /// Whether the comparisons held.
    pub succeeded: bool,
    /// The registry's revision after it; of its own writes, if it wrote.
    pub revision: u64,
}

/// Asks for what has changed, waiting if nothing has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchRequest {
    /// Which keys.
    pub select: Selector,
    /// The first revision that is of interest; 0: from now on.
    pub from_revision: u64,
    /// How long to wait when nothing has changed, in milliseconds; [`WATCH_WAIT_MS_MAX`] at the most.
    pub wait_ms: u64,
}

/// What has changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WatchAnswer {
    /// In the order of their revisions; empty when the wait was over first.
    pub events: Vec<Event>,
    /// Everything up to this revision has been told: ask next from this plus one.
    pub revision: u64,
}

/// An answer to a watch as it travels: what the asker must act on is told apart by type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum WatchReply {
    /// What has changed.
    Changed(WatchAnswer),
    /// [`RegistryError::Compacted`].
    Compacted {
        /// The last revision whose events are gone.
        compacted: u64,
        /// The revision now.
        revision: u64,
    },
    /// [`RegistryError::WentBack`].
    WentBack {
        /// The revision that the asker knows.
        asked: u64,
        /// The revision now.
        revision: u64,
    },
}

/// One change of one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum Event {
    /// Written.
    Put(KeyValue),
    /// Removed.
    Deleted {
        /// Which key.
        key: String,
        /// At which revision.
        revision: u64,
    },
}

impl Event {
    /// Which key.
    #[must_use]
    pub fn key(&self) -> &str {
        match self {
            Event::Put(pair) => &pair.key,
            Event::Deleted { key, .. } => key,
        }
    }

    /// At which revision.
    #[must_use]
    pub fn revision(&self) -> u64 {
        match self {
            Event::Put(pair) => pair.mod_revision,
            Event::Deleted { revision, .. } => *revision,
        }
    }
}

/// Why the registry did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The request breaks a limit or contradicts itself; sending it again is useless.
    #[error("registry request refused: {reason}")]
    Invalid {
        /// Which limit, in words.
        reason: String,
    },
    /// The events asked for are forgotten: read everything, then watch from its revision plus one.
    #[error(
        "registry history up to revision {compacted} is compacted (now at {revision}); \
         read again, then watch from there"
    )]
    Compacted {
        /// The last revision whose events are gone.
        compacted: u64,
        /// The revision now.
        revision: u64,
    },
    /// The asker has seen a revision that this registry has not reached: it was put back to an
    /// older state, or it is another registry.
    #[error("registry is at revision {revision}, but {asked} was seen before: it went backwards")]
    WentBack {
        /// The revision that the asker knows.
        asked: u64,
        /// The revision now.
        revision: u64,
    },
    /// The registry may come from a backup; it bootstraps nothing until a person confirms.
    #[error(
        "registry may have been restored from a backup, and begins no group's life and takes no \
         record of a life it does not know until it is confirmed; if the old hub is gone for good, start it with `cohort hub --confirm-restored`"
    )]
    RestoredUnconfirmed,
    /// The registry is full.
    #[error("registry is full: {bytes} bytes of {bytes_max}; remove what is no longer needed")]
    Full {
        /// What it holds, in bytes.
        bytes: usize,
        /// What it may hold, in bytes.
        bytes_max: usize,
    },
    /// What is stored under a key is not what belongs there.
    #[error("registry key `{key}` holds no valid record: {reason}")]
    Corrupt {
        /// Which key.
        key: String,
        /// Why not.
        reason: String,
    },
    /// Others kept changing the same key; try again later.
    #[error("registry key `{key}` was changed by others {attempts} times in a row")]
    Contended {
        /// Which key.
        key: String,
        /// How often it was tried.
        attempts: u32,
    },
    /// The registry cannot be reached, or is too busy: rollouts in progress go on, none begins.
    #[error("registry cannot be reached: {reason}")]
    Unavailable {
        /// What was tried and what came of it.
        reason: String,
    },
    /// What is there is newer than what was to be written: read, then decide.
    #[error("registry refused a change: {reason}")]
    Conflict {
        /// The registry's own words.
        reason: String,
    },
    /// The registry knows the asker and says no.
    #[error("registry refused: {reason}")]
    Forbidden {
        /// The registry's own words.
        reason: String,
    },
    /// The disk under the registry fails; the hub must be restarted.
    #[error("registry storage failed while it was to {action}")]
    Storage {
        /// What was being done.
        action: &'static str,
        /// What the storage said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A registry. Object safe; share it as `Arc<dyn Registry>`.
#[async_trait]
pub trait Registry: Send + Sync {
    /// Reads pairs.
    ///
    /// # Errors
    /// [`RegistryError`]; never `Compacted`, because reads are of the present only.
    async fn range(&self, request: RangeRequest) -> Result<RangeAnswer, RegistryError>;

    /// Changes pairs, all or nothing. When it returns, the change is durable.
    ///
    /// # Errors
    /// [`RegistryError`]. After `Unavailable` or `Storage` it is not known whether the change was
    /// made: read, then decide.
    async fn txn(&self, txn: Txn) -> Result<TxnAnswer, RegistryError>;

    /// Waits for changes.
    ///
    /// # Errors
    /// [`RegistryError`], `Compacted` and `WentBack` among them: read everything again.
    async fn watch(&self, request: WatchRequest) -> Result<WatchAnswer, RegistryError>;
}
