//! What a server is doing, as facts for people: nothing is decided by it, but the step.

use serde::{Deserialize, Serialize};

use crate::ids::ServerId;
use crate::report::Step;

/// Longest name of a source and longest error in a [`Download`], in bytes: one line for people.
const TEXT_BYTES_MAX: usize = 200;
/// Sources that a [`Download`] names of each kind.
pub const SOURCES_NAMED_MAX: usize = 2;

/// What a server is doing for one app.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "doing", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Doing {
    /// It takes this step of a change,
    Step {
        /// Other than to fetch.
        step: Step,
    },
    /// or fetches a release,
    Download(Download),
    /// or its checks have passed, and the group has yet to acknowledge it.
    Confirming,
}

/// How far a download is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "download", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Download {
    /// Its turn has not come,
    Queued,
    /// or its bytes arrive, or are waited for,
    Running {
        /// Bytes that are on disk and verified,
        held_bytes: u64,
        /// of so many; 0 until the first answer.
        total_bytes: u64,
        /// Where they come from.
        from: BytesFrom,
        /// Sources refused for wrong bytes, at most [`SOURCES_NAMED_MAX`].
        refused: Vec<String>,
        /// How long the leader has not answered, in milliseconds.
        leader_silent_ms: u64,
        /// `download_limit` of this server, in bytes per second.
        limit_bytes_per_second: Option<u64>,
    },
    /// or the last try failed,
    Failed {
        /// so many times since it was ordered,
        tries: u32,
        /// with this error.
        error: String,
    },
    /// or everything is here.
    Complete,
}

/// Where the bytes of a download come from; if from nowhere, what is waited for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "from", rename_all = "kebab-case", deny_unknown_fields)]
pub enum BytesFrom {
    /// This mirror,
    Mirror { mirror: String },
    /// or servers: this one, and so many besides.
    Servers { first: String, more: u64 },
    /// Mirrors, as soon as one answers; with the one that failed, if one did.
    MirrorAwaited { failed: Option<Failing> },
    /// The server that the leader named, as soon as it answers.
    ServerAwaited { server: ServerId, error: Option<String> },
    /// The leader has yet to name a source.
    LeaderAwaited,
    /// No leader guides this download, and these sources, at most [`SOURCES_NAMED_MAX`], have
    /// failed.
    SourcesAwaited { failed: Vec<Failing> },
    /// No mirror is configured, and no server holds the release.
    Nowhere,
}

/// A source that failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failing {
    /// The server, or the mirror's address.
    pub source: String,
    /// Its last error.
    pub error: String,
}

impl Doing {
    /// The step.
    #[must_use]
    pub fn step(&self) -> Step {
        match self {
            Doing::Step { step } => *step,
            Doing::Download(_) => Step::Fetch,
            Doing::Confirming => Step::Check,
        }
    }

    /// The same, with texts and lists of bounded length.
    #[must_use]
    pub fn bounded(mut self) -> Doing {
        let cut = |text: &mut String| text.truncate(text.floor_char_boundary(TEXT_BYTES_MAX));
        let cut_all = |failing: &mut Failing| {
            cut(&mut failing.source);
            cut(&mut failing.error);
        };
        match &mut self {
            Doing::Download(Download::Failed { error, .. }) => cut(error),
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
