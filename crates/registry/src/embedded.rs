//! The hub's registry: the pure [`State`], made durable in one file.
//!
//! A change becomes visible only after it is committed and synced. All of that happens in one
//! blocking task, so that a cancelled request cannot leave file and memory out of step.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::UNIX_EPOCH;

use async_trait::async_trait;
use cohort_base::Cause;
use parking_lot::Mutex;

use crate::api::{
    Event, KeyValue, RangeAnswer, RangeRequest, Registry, RegistryError, Txn, TxnAnswer,
    WatchAnswer, WatchRequest,
};
use crate::disk::{Disk, Loaded, NewStore, OpenError};
use crate::keys::{self, Place};
use crate::records::{BootstrapRecord, decode};
use crate::shared::SharedState;
use crate::state::State;

/// How far a confirmed restore skips ahead at least: beyond any revision that the lost registry can
/// have issued since the backup (a hundred writes a second for half a year).
pub const RESTORE_LEAP: u64 = 1_600_000_000;
/// A confirmed restore also skips to as many revisions per second of Unix time. A registry that is
/// lost a second time is as empty as at the first, but time has passed: the second skip ends beyond
/// all that was issued since the first, because a disk syncs fewer than a thousand writes a second.
const REVISIONS_PER_S: u64 = 1_000;

/// A durable registry in one file. Clones share it; only one process may have it open.
///
/// A copied or restored file is detected by its inode and creation time, and by clients that have
/// seen a higher revision ([`EmbeddedRegistry::suspect_restore`]). Until
/// [`EmbeddedRegistry::confirm_restored`] it serves everything but writes no bootstrap record,
/// because the group may be running.
#[derive(Clone)]
pub struct EmbeddedRegistry {
    inner: Arc<Inner>,
}

struct Inner {
    disk: Disk,
    /// Held from the decision until the change is visible: one writer at a time.
    writer: Mutex<()>,
    shared: SharedState,
    store: String,
    restored: AtomicBool,
    /// The highest revision that a client had seen, while it may come from a backup.
    asked: AtomicU64,
    /// Whether that was found out when it was opened.
    detected: bool,
    /// After a failed commit the file's content is unknown: no more changes until a restart.
    failed: AtomicBool,
}

impl EmbeddedRegistry {
    /// Opens the registry in a file, or creates an empty one named `new_store` (random text, kept
    /// in the file). The folder must exist.
    ///
    /// # Errors
    /// When the file is damaged, of a later version, in use, or unreadable.
    pub fn open(path: &Path, new_store: &str) -> Result<Self, OpenError> {
        let new_store = NewStore { name: new_store, replaces_lost: false };
        Ok(Self::of(Disk::open(path, file_identity, new_store)?))
    }

    /// As [`open`](Self::open), for a fleet that has had a registry: if the file is missing, it was
    /// lost, and the empty one that takes its place counts as restored.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_again(path: &Path, new_store: &str) -> Result<Self, OpenError> {
        let new_store = NewStore { name: new_store, replaces_lost: true };
        Ok(Self::of(Disk::open(path, file_identity, new_store)?))
    }

    /// As [`open`](Self::open), over a test's database.
    #[cfg(test)]
    pub(crate) fn open_database(db: redb::Database) -> Result<Self, OpenError> {
        Ok(Self::of(Disk::open_database(db, Path::new("test"), "test", TEST_STORE)?))
    }

    fn of(loaded: Loaded) -> Self {
        if loaded.restored {
            tracing::warn!(
                file = %loaded.disk.path().display(),
                "registry file is not the one last used here, or was lost: no group is \
                 bootstrapped and no policy is accepted until \
                 `cohort hub --config hub.toml --confirm-restored`"
            );
        }
        let inner = Inner {
            disk: loaded.disk,
            writer: Mutex::new(()),
            shared: SharedState::new(loaded.state),
            store: loaded.store,
            restored: AtomicBool::new(loaded.restored),
            asked: AtomicU64::new(loaded.asked),
            detected: loaded.detected,
            failed: AtomicBool::new(false),
        };
        EmbeddedRegistry { inner: Arc::new(inner) }
    }

    /// The random name given at creation.
    #[must_use]
    pub fn store(&self) -> &str {
        &self.inner.store
    }

    /// The revision of the last change.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.inner.shared.read(State::revision)
    }

    /// Reads the current state, in the process that has the registry open.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        self.inner.shared.read(look)
    }

    /// One current pair, in the process that has the registry open.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<KeyValue> {
        self.inner.shared.read(|state| state.get(key).cloned())
    }

    /// Whether it may come from a backup and waits for confirmation.
    #[must_use]
    pub fn restored(&self) -> bool {
        self.inner.restored.load(Ordering::SeqCst)
    }

    /// Whether opening it found out that it may come from a backup: an operator cannot have seen
    /// yet what it lacks.
    #[must_use]
    pub fn just_detected(&self) -> bool {
        self.inner.detected && self.restored()
    }

    /// Whether a loss was confirmed once: every revision since is beyond what a client can know of
    /// an earlier file.
    #[must_use]
    pub fn has_leapt(&self) -> bool {
        self.revision() >= RESTORE_LEAP
    }

    /// Makes a transaction if `check` accepts the current state; nothing can change between the
    /// two. All of it in one blocking task, so that a caller that goes away leaves file and memory
    /// alike.
    ///
    /// # Errors
    /// The error of `check`, or of the registry.
    pub async fn txn_checked<E: From<RegistryError> + Send + 'static>(
        &self,
        txn: Txn,
        check: impl FnOnce(&State, &Txn) -> Result<(), E> + Send + 'static,
    ) -> Result<TxnAnswer, E> {
        let inner = Arc::clone(&self.inner);
        let made = tokio::task::spawn_blocking(move || {
            let _writer = inner.writer.lock();
            inner.shared.read(|state| check(state, &txn))?;
            Ok(inner.commit(&txn)?)
        });
        made.await.unwrap_or_else(|error| Err(storage("run a task")(error.into()).into()))
    }

    /// Whether a commit has failed: it serves reads only, until it is opened again.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.inner.failed.load(Ordering::SeqCst)
    }

    /// Whether this registry has issued a revision or, while it counts as restored, an earlier file
    /// of it may have: one that confirming now (`now_s` is Unix time) would skip.
    #[must_use]
    pub fn may_have_issued(&self, revision: u64, now_s: u64) -> bool {
        revision <= self.revision() || self.restored() && revision < self.next_life(now_s)
    }

    /// The revision to which a confirmation skips.
    fn next_life(&self, now_s: u64) -> u64 {
        beyond(self.revision().max(self.inner.asked.load(Ordering::SeqCst)), now_s)
    }

    /// Records durably that this registry never reached a revision that one of its fleet has
    /// issued, or lacks a record that it had (`asked` is 0 then): it went backwards. The caller has
    /// proof. Returns whether that is news.
    ///
    /// # Errors
    /// `Storage`.
    pub async fn suspect_restore(&self, asked: u64) -> Result<bool, RegistryError> {
        if self.restored() && asked <= self.inner.asked.load(Ordering::SeqCst) {
            return Ok(false);
        }
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let _writer = inner.writer.lock();
            let known = inner.restored.swap(true, Ordering::SeqCst);
            let asked = asked.max(inner.asked.load(Ordering::SeqCst));
            inner.disk.mark_restored(asked).map_err(storage("mark itself as restored"))?;
            inner.asked.store(asked, Ordering::SeqCst);
            Ok(!known)
        })
        .await
    }

    /// An operator confirms that no other hub of this fleet is running. Skips to a revision beyond
    /// any that may have been issued, so that no incarnation is ever issued twice. `now_s` is Unix
    /// time.
    ///
    /// # Errors
    /// `Storage`.
    pub async fn confirm_restored(&self, now_s: u64) -> Result<(), RegistryError> {
        let registry = self.clone();
        blocking(move || {
            let inner = &registry.inner;
            let _writer = inner.writer.lock();
            if !registry.restored() {
                return Ok(());
            }
            let action = "confirm that it was restored";
            let identity = file_identity(inner.disk.path());
            let identity = identity.map_err(|error| storage(action)(error.into()))?;
            let revision = registry.next_life(now_s);
            inner.disk.confirm(&identity, revision).map_err(storage(action))?;
            inner.shared.write(|state| state.leap(revision));
            inner.asked.store(0, Ordering::SeqCst);
            inner.restored.store(false, Ordering::SeqCst);
            Ok(())
        })
        .await
    }
}

impl Inner {
    /// The caller holds the writer's lock.
    fn commit(&self, txn: &Txn) -> Result<TxnAnswer, RegistryError> {
        let (decision, compacted) =
            self.shared.read(|state| state.decide(txn).map(|made| (made, state.compacted())))?;
        if decision.changes.is_empty() {
            return Ok(decision.answer);
        }
        if self.restored.load(Ordering::SeqCst) && decision.changes.iter().any(needs_history) {
            return Err(RegistryError::RestoredUnconfirmed);
        }
        if self.failed.load(Ordering::SeqCst) {
            let source = "an earlier commit failed; restart the hub".into();
            return Err(storage("commit a change")(source));
        }
        if let Err(source) = self.disk.commit(&decision.changes, compacted) {
            self.failed.store(true, Ordering::SeqCst);
            return Err(storage("commit a change")(source));
        }
        self.shared.write(|state| state.accept(decision.changes));
        Ok(decision.answer)
    }
}

#[async_trait]
impl Registry for EmbeddedRegistry {
    async fn range(&self, request: RangeRequest) -> Result<RangeAnswer, RegistryError> {
        self.inner.shared.read(|state| state.range(&request))
    }

    async fn txn(&self, txn: Txn) -> Result<TxnAnswer, RegistryError> {
        self.txn_checked(txn, |_, _| Ok(())).await
    }

    async fn watch(&self, request: WatchRequest) -> Result<WatchAnswer, RegistryError> {
        self.inner.shared.watch(request).await
    }
}

/// Whether a change is refused while the registry may have forgotten something: it takes its number
/// from the revision, and an older registry would issue that number twice. A record of an
/// incarnation that exists already names its own.
fn needs_history(event: &Event) -> bool {
    let Event::Put(pair) = event else { return false };
    match keys::parse(&pair.key) {
        Some(Place::Bootstrap { .. }) => {
            decode::<BootstrapRecord>(pair).is_ok_and(|record| record.incarnation.is_none())
        }
        Some(Place::Policy { .. } | Place::Removed { .. }) => true,
        Some(
            Place::Server { .. }
            | Place::GroupInfo { .. }
            | Place::Members { .. }
            | Place::GroupRecord { .. }
            | Place::Verdict { .. }
            | Place::Kill { .. },
        )
        | None => false,
    }
}

/// A revision beyond all that a registry issued that was seen at this one.
fn beyond(revision: u64, now_s: u64) -> u64 {
    revision.saturating_add(RESTORE_LEAP).max(now_s.saturating_mul(REVISIONS_PER_S))
}

#[cfg(test)]
const TEST_STORE: NewStore<'_> = NewStore { name: "test", replaces_lost: false };

/// Distinguishes a file from its copies: the inode number and, because those are reused, the
/// creation time. Neither changes while the file is in use.
fn file_identity(path: &Path) -> std::io::Result<String> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path)?;
    let made = metadata.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let made_ns = made.map_or(0, |at| at.as_nanos());
    Ok(format!("inode {} made {made_ns}", metadata.ino()))
}

fn storage(action: &'static str) -> impl FnOnce(Cause) -> RegistryError {
    move |source| RegistryError::Storage { action, source }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| Err(storage("run a task")(error.into())))
}
