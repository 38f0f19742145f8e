//! Idle connections kept for reuse, bounded per target, in total, and in time.

use std::collections::HashMap;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::client::conn::http1::SendRequest;
use parking_lot::Mutex;
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::client::Target;
use crate::limits::{POOL_IDLE_MAX, POOL_IDLE_PER_TARGET_MAX, POOL_IDLE_TIMEOUT};

/// The body of an outgoing request.
pub(super) type SentBody = UnsyncBoxBody<Bytes, std::io::Error>;

/// A connection; closed when dropped.
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
    /// Takes the most recently used connection: the least likely to be stale.
    pub(super) fn take(&self, target: &Target) -> Option<Connection> {
        let mut idle = self.idle.lock();
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

    /// Returns a connection whose last response has been read completely.
    pub(super) fn put(&self, target: &Target, connection: Connection) {
        if connection.sender.is_closed() {
            return;
        }
        let mut idle = self.idle.lock();
        // Sweeping here avoids a background task.
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

    /// Closes all idle connections.
    pub(super) fn clear(&self) {
        self.idle.lock().clear();
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.idle.lock().values().map(Vec::len).sum()
    }
}
