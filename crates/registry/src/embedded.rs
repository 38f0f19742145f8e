//! The registry in the hub: the pure [`State`], made durable in one file.
//!
//! Every change is decided, committed and synced, and only then seen by anyone. All of it happens
//! in one blocking task, so that an asker who goes away cannot leave the file and the memory apart.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::UNIX_EPOCH;

use async_trait::async_trait;

use crate::api::{
    KeyValue, Op, RangeAnswer, RangeRequest, Registry, RegistryError, Txn, TxnAnswer, WatchAnswer,
    WatchRequest,
};
use crate::disk::{Disk, Loaded, OpenError};
use crate::keys;
use crate::memory::SharedState;
use crate::state::State;

/// How far a confirmed restore leaps ahead: beyond any revision that the lost registry can have
/// given out since the backup was made (a hundred writes a second for half a year).
pub const RESTORE_LEAP: u64 = 1_600_000_000;

/// A durable registry in one file. Clones share it; only one process may have it open.
///
/// A file that was copied or restored is noticed by its inode and age, and by askers who have seen a
/// higher revision ([`EmbeddedRegistry::suspect_restore`]). Until [`EmbeddedRegistry::confirm_restored`] such a
/// registry serves everything but writes no group's bootstrap record, because the group may live.
#[derive(Clone)]
pub struct EmbeddedRegistry {
    inner: Arc<Inner>,
}

struct Inner {
    disk: Disk,
    /// Held from the decision until the change is seen: one writer at a time.
    writer: Mutex<()>,
    shared: SharedState,
    store: String,
    restored: AtomicBool,
    /// After a failed commit nobody knows what is on the disk: no more changes until a restart.
    failed: AtomicBool,
}

impl EmbeddedRegistry {
    /// Opens the registry in a file, or makes an empty one. The folder must exist.
    ///
    /// `new_store` names a registry that is made now (random text; kept in the file).
    ///
    /// # Errors
    /// When the file is damaged, of a later version, in use, or cannot be read.
    pub fn open(path: &Path, new_store: &str) -> Result<Self, OpenError> {
        Ok(Self::of(Disk::open(path, file_identity, new_store)?))
    }

    /// The same over a database that a test has opened.
    #[cfg(test)]
    pub(crate) fn open_database(db: redb::Database) -> Result<Self, OpenError> {
        Ok(Self::of(Disk::open_database(db, Path::new("test"), "test", "test")?))
    }

    fn of(loaded: Loaded) -> Self {
        if loaded.restored {
            tracing::warn!(
                file = %loaded.disk.path().display(),
                "registry file is not the one that was last used here: restored from a backup? \
                 No group is bootstrapped until `cohort hub --confirm-restored`"
            );
        }
        let inner = Inner {
            disk: loaded.disk,
            writer: Mutex::new(()),
            shared: SharedState::new(loaded.state),
            store: loaded.store,
            restored: AtomicBool::new(loaded.restored),
            failed: AtomicBool::new(false),
        };
        EmbeddedRegistry { inner: Arc::new(inner) }
    }

    /// The random name that was given when the registry was made.
    #[must_use]
    pub fn store(&self) -> &str {
        &self.inner.store
    }

    /// The revision of the last change.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.inner.shared.read(State::revision)
    }

    /// Looks at all that is there now; for the process that holds the registry.
    pub fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        self.inner.shared.read(look)
    }

    /// One pair, as it is now; for the process that holds the registry.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<KeyValue> {
        self.inner.shared.read(|state| state.get(key).cloned())
    }

    /// Whether it may come from a backup and waits for a person to confirm.
    #[must_use]
    pub fn restored(&self) -> bool {
        self.inner.restored.load(Ordering::SeqCst)
    }

    /// Makes a transaction if `check` agrees with what is there at that very moment: nobody can
    /// change anything between the check and the transaction.
    ///
    /// # Errors
    /// What `check` says, or what the registry says.
    pub async fn txn_checked<E: Send + 'static>(
        &self,
        txn: Txn,
        check: impl FnOnce(&State, &Txn) -> Result<(), E> + Send + 'static,
    ) -> Result<TxnAnswer, Unmade<E>> {
        let inner = Arc::clone(&self.inner);
        let made = tokio::task::spawn_blocking(move || inner.txn(&txn, check)).await;
        made.unwrap_or_else(|error| Err(Unmade::Failed(storage("run a task")(error.into()))))
    }

    /// Whether its disk has failed: it serves reads, and no change until it is opened again.
    #[must_use]
    pub fn failed(&self) -> bool {
        self.inner.failed.load(Ordering::SeqCst)
    }

    /// Someone has shown a revision that this registry never reached: it went backwards. Durable.
    ///
    /// # Errors
    /// `Storage`.
    pub async fn suspect_restore(&self) -> Result<(), RegistryError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let _writer = inner.lock();
            if !inner.restored.swap(true, Ordering::SeqCst) {
                inner.disk.mark_restored().map_err(storage("mark itself as restored"))?;
            }
            Ok(())
        })
        .await
    }

    /// A person says that no other hub of this fleet lives. Leaps to a revision beyond any that may
    /// have been given out, so that no incarnation is ever given out twice.
    ///
    /// # Errors
    /// `Storage`.
    pub async fn confirm_restored(&self) -> Result<(), RegistryError> {
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let _writer = inner.lock();
            if !inner.restored.load(Ordering::SeqCst) {
                return Ok(());
            }
            let action = "confirm that it was restored";
            let identity = file_identity(inner.disk.path()).map_err(Into::into);
            let identity = identity.map_err(storage(action))?;
            let revision = inner.shared.read(State::revision) + RESTORE_LEAP;
            inner.disk.confirm(&identity, revision).map_err(storage(action))?;
            inner.shared.write(|state| state.leap(revision));
            inner.restored.store(false, Ordering::SeqCst);
            Ok(())
        })
        .await
    }
}

/// Why a checked transaction was not made.
#[derive(Debug)]
pub enum Unmade<E> {
    /// The check said no.
    Refused(E),
    /// The registry failed.
    Failed(RegistryError),
}

impl Inner {
    fn lock(&self) -> std::sync::MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn txn<E>(
        &self,
        txn: &Txn,
        check: impl FnOnce(&State, &Txn) -> Result<(), E>,
    ) -> Result<TxnAnswer, Unmade<E>> {
        let _writer = self.lock();
        self.shared.read(|state| check(state, txn)).map_err(Unmade::Refused)?;
        self.commit(txn).map_err(Unmade::Failed)
    }

    /// Only with the writer's lock.
    fn commit(&self, txn: &Txn) -> Result<TxnAnswer, RegistryError> {
        let (decision, compacted) =
            self.shared.read(|state| state.decide(txn).map(|made| (made, state.compacted())))?;
        if decision.changes.is_empty() {
            return Ok(decision.answer);
        }
        let ops = if decision.answer.succeeded { &txn.then } else { &txn.otherwise };
        if self.restored.load(Ordering::SeqCst)
            && ops.iter().any(|op| matches!(op, Op::Put { key, .. } if keys::is_bootstrap(key)))
        {
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
        let inner = Arc::clone(&self.inner);
        blocking(move || {
            let _writer = inner.lock();
            inner.commit(&txn)
        })
        .await
    }

    async fn watch(&self, request: WatchRequest) -> Result<WatchAnswer, RegistryError> {
        self.inner.shared.watch(request).await
    }
}

/// Tells a file from a copy of it: the inode number and, because those are used again, the time at
/// which the file was made. Neither changes while the file is in use.
fn file_identity(path: &Path) -> std::io::Result<String> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = std::fs::metadata(path)?;
    let made = metadata.created().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
    let made_ns = made.map_or(0, |at| at.as_nanos());
    Ok(format!("inode {} made {made_ns}", metadata.ino()))
}

fn storage(action: &'static str) -> impl FnOnce(crate::disk::Source) -> RegistryError {
    move |source| RegistryError::Storage { action, source }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, RegistryError> + Send + 'static,
) -> Result<T, RegistryError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(RegistryError::Storage { action: "run a task", source: error.into() }),
    }
}
