//! What a server is doing, as facts for people: nothing but the step affects decisions.

use serde::{Deserialize, Serialize};

use crate::ids::ServerId;
use crate::report::Step;

/// Longest name of a source and longest error in a [`Download`], in bytes: one line for people.
const TEXT_BYTES_MAX: usize = 200;
/// Sources of each kind that a [`Download`] names.
pub const SOURCES_NAMED_MAX: usize = 2;

/// What a server is doing for one app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "doing", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Doing {
    /// It is taking this step of a change,
    Step {
        /// Any step except the fetch.
        step: Step,
    },
    /// or its checks do not pass yet,
    Checking {
        /// What was seen last.
        saw: String,
        /// Until it counts as failed, in milliseconds.
        left_ms: u64,
    },
    /// or is fetching a release,
    Download(Download),
    /// or its checks have passed, and the group has not acknowledged that yet.
    Confirming,
}

/// How far a download is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "download", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Download {
    /// Waiting for a free slot,
    Queued,
    /// or receiving bytes, or waiting for a source,
    Running {
        /// Bytes on disk and verified.
        held_bytes: u64,
        /// Size of the download; 0 until the first response.
        total_bytes: u64,
        /// Source of the bytes.
        from: BytesFrom,
        /// Sources refused for wrong bytes, at most [`SOURCES_NAMED_MAX`].
        refused: Vec<String>,
        /// How long the leader has been silent, in milliseconds.
        leader_silent_ms: u64,
        /// `download_limit` of this server, in bytes per second.
        limit_bytes_per_second: Option<u64>,
    },
    /// or its last try failed,
    Failed {
        /// Tries since it was ordered.
        tries: u32,
        /// The last try's error.
        error: String,
    },
    /// or done.
    Complete,
}

/// Where the bytes of a download come from; if from nowhere yet, what it is waiting for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case", deny_unknown_fields)]
pub enum BytesFrom {
    /// This mirror,
    Mirror { mirror: String },
    /// or servers: this one, and `more` others.
    Servers { first: String, more: u64 },
    /// Mirrors, once one responds; with the one that failed, if one did.
    MirrorAwaited { failed: Option<Failing> },
    /// The server that the leader named, once it responds.
    ServerAwaited { server: ServerId, error: Option<String> },
    /// The leader has not named a source yet.
    LeaderAwaited,
    /// No leader guides this download, and these sources, at most [`SOURCES_NAMED_MAX`], have
    /// failed.
    SourcesAwaited { failed: Vec<Failing> },
    /// No mirror is configured, and no server holds the release.
    Nowhere,
}

/// A source that failed, and its last error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failing {
    /// The server, or the mirror's address.
    pub source: String,
    pub error: String,
}

impl Doing {
    /// The step being taken: `Fetch` for a download, `Check` while confirming or not passing.
    #[must_use]
    pub fn step(&self) -> Step {
        match self {
            Doing::Step { step } => *step,
            Doing::Download(_) => Step::Fetch,
            Doing::Checking { .. } | Doing::Confirming => Step::Check,
        }
    }

    /// The same, with bounded texts and lists.
    #[must_use]
    pub fn bounded(mut self) -> Doing {
        let cut = |text: &mut String| text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        let cut_all = |failing: &mut Failing| {
            cut(&mut failing.source);
            cut(&mut failing.error);
        };
        match &mut self {
            Doing::Checking { saw: text, .. }
            | Doing::Download(Download::Failed { error: text, .. }) => cut(text),
            Doing::Download(Download::Running { from, refused, .. }) => {
                refused.truncate(SOURCES_NAMED_MAX);
                refused.iter_mut().for_each(cut);
                match from {
                    BytesFrom::Mirror { mirror: text } | BytesFrom::Servers { first: text, .. } => {
                        cut(text);
                    }
                    BytesFrom::MirrorAwaited { failed } => failed.iter_mut().for_each(cut_all),
                    BytesFrom::ServerAwaited { error, .. } => error.iter_mut().for_each(cut),
                    BytesFrom::SourcesAwaited { failed } => {
                        failed.truncate(SOURCES_NAMED_MAX);
                        failed.iter_mut().for_each(cut_all);
                    }
                    BytesFrom::LeaderAwaited | BytesFrom::Nowhere => {}
                }
            }
            Doing::Step { .. }
            | Doing::Confirming
            | Doing::Download(Download::Queued | Download::Complete) => {}
        }
        self
    }
}
