//! Idle connections, kept for the next call: bounded per target, in all, and in time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::client::conn::http1::SendRequest;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::client::Target;
use crate::limits::{POOL_IDLE_MAX, POOL_IDLE_PER_TARGET_MAX, POOL_IDLE_TIMEOUT};

/// A request's body as it is sent.
pub(super) type SentBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// One connection. Dropping it closes it.
pub(super) struct Connection {
    pub(super) sender: SendRequest<SentBody>,
    pub(super) _driver: AbortOnDropHandle<()>,
    pub(super) _permit: OwnedSemaphorePermit,
}

struct Idle {
    connection: Connection,
    since: Instant,
}

#[derive(Default)]
pub(super) struct Pool {
    idle: Mutex<HashMap<Target, Vec<Idle>>>,
}

impl Pool {
    /// Takes the connection that was used last: the one least likely to be stale.
    pub(super) fn take(&self, target: &Target) -> Option<Connection> {
        let mut idle = self.lock();
        let list = idle.get_mut(target)?;
        let mut found = None;
        while let Some(Idle { connection, since }) = list.pop() {
            if since.elapsed() < POOL_IDLE_TIMEOUT && connection.sender.is_ready() {
                found = Some(connection);
                break;
            }
        }
        if list.is_empty() {
            idle.remove(target);
        }
        found
    }

    /// Keeps a connection whose last answer was read to its end.
    pub(super) fn put(&self, target: &Target, connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        let mut idle = self.lock();
        // Sweeping on every return keeps it a plain data structure, without a task of its own.
        idle.retain(|_, list| {
            list.retain(|idle| {
                idle.since.elapsed() < POOL_IDLE_TIMEOUT && !idle.connection.sender.is_closed()
            });
            !list.is_empty()
        });
        if idle.values().map(Vec::len).sum::<usize>() >= POOL_IDLE_MAX {
            return;
        }
        let list = idle.entry(target.clone()).or_default();
        if list.len() >= POOL_IDLE_PER_TARGET_MAX {
            list.remove(0);
        }
        list.push(Idle { connection, since: Instant::now() });
    }

    /// Closes all of them.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lock().values().map(Vec::len).sum()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Target, Vec<Idle>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
