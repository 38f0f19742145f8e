//! What a client has seen of the registry, as the hub itself proves it.
//!
//! A registry that was restored to an older state must not issue a number twice, and cannot know
//! that it is older. Its clients know: every answer of the hub carries its revision with a proof,
//! and every request returns the highest one that the client has. A number without a proof says
//! nothing, whoever sends it.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cohort_base::{Cause, chain, durable};
use cohort_identity::Secret;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

/// Most bytes that are read of the file; ours has about a hundred.
const FILE_BYTES_MAX: u64 = 4096;
/// The shortest time between two writes of the file: a client that forgets a minute of revisions
/// still knows nearly all.
const WRITE_EVERY: Duration = Duration::from_secs(60);

/// A request to the hub's registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Asked<T> {
    pub request: T,
    /// The highest revision that the hub proved to the sender; `None` before its first answer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen: Option<Seen>,
}

/// An answer of the hub's registry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Answered<T> {
    pub answer: T,
    pub seen: Seen,
}

/// A revision that a registry of this fleet has reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Seen {
    pub revision: u64,
    /// Of the hub, for itself: 64 hexadecimal digits.
    pub proof: String,
}

impl Seen {
    /// The secret's purpose; see [`Authority::secret`](cohort_identity::Authority::secret).
    pub const PURPOSE: &str = "revisions of the registry";

    /// Proves a revision, for the hub that has the secret.
    #[must_use]
    pub fn new(revision: u64, secret: &Secret) -> Self {
        Seen { revision, proof: secret.prove(&revision.to_string()) }
    }

    /// The revision, if a hub with this secret has proven it.
    #[must_use]
    pub fn proven(&self, secret: &Secret) -> Option<u64> {
        secret.proves(&self.revision.to_string(), &self.proof).then_some(self.revision)
    }
}

/// The highest revision that the hub has proven to this client, also across restarts if it has a
/// file.
#[derive(Debug, Default)]
pub struct SeenRecord {
    file: Option<PathBuf>,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    seen: Option<Seen>,
    written: Option<Instant>,
}

impl SeenRecord {
    /// The record in a file, which may be missing. A damaged one counts as missing: it will be
    /// replaced.
    #[must_use]
    pub fn open(file: PathBuf) -> Self {
        let seen = read(&file).unwrap_or_else(|error| {
            let (file, error) = (file.display(), chain(&*error));
            tracing::warn!(%file, error, "ignoring damaged record of the hub's revision");
            None
        });
        let known = Mutex::new(Known { seen, written: None });
        SeenRecord { file: Some(file), known }
    }

    /// What to send with a request.
    #[must_use]
    pub fn current(&self) -> Option<Seen> {
        self.known.lock().seen.clone()
    }

    /// Takes in what came with an answer.
    pub async fn note(&self, seen: Seen) {
        {
            let mut known = self.known.lock();
            if known.seen.as_ref().is_some_and(|known| known.revision >= seen.revision) {
                return;
            }
            known.seen = Some(seen.clone());
            if known.written.is_some_and(|at| at.elapsed() < WRITE_EVERY) {
                return;
            }
            known.written = Some(Instant::now());
        }
        let Some(file) = self.file.clone() else { return };
        let text = serde_json::to_vec(&seen).expect("numbers and strings always become JSON");
        let path = file.clone();
        let write = move || durable::write(&path, &text, durable::SECRET);
        if let Ok(Err(error)) = tokio::task::spawn_blocking(write).await {
            tracing::warn!(file = %file.display(), %error, "cannot record the hub's revision");
        }
    }
}

fn read(file: &Path) -> Result<Option<Seen>, Cause> {
    use std::io::Read as _;
    let open = match std::fs::File::open(file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        open => open?,
    };
    let mut text = String::new();
    open.take(FILE_BYTES_MAX).read_to_string(&mut text)?;
    Ok(Some(serde_json::from_str(&text)?))
}

#[cfg(test)]
mod seen_test {
    use super::*;

    fn seen(revision: u64) -> Seen {
        Seen { revision, proof: "0".repeat(64) }
    }

    #[tokio::test]
    async fn the_highest_is_kept_across_restarts() {
        let folder = tempfile::tempdir().expect("temp dir");
        let file = folder.path().join("seen.json");
        let record = SeenRecord::open(file.clone());
        assert_eq!(record.current(), None);
        record.note(seen(7)).await;
        record.note(seen(5)).await;
        assert_eq!(record.current(), Some(seen(7)));
        assert_eq!(SeenRecord::open(file.clone()).current(), Some(seen(7)));
        std::fs::write(&file, "damaged").expect("write");
        assert_eq!(SeenRecord::open(file).current(), None);
    }
}
