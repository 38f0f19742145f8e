//! The gate of a port: its [`Shares`], with a clock, and a way to end what gives way.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use cohort_base::metrics::Counter;
use cohort_identity::Peer;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::shares::{Id, Refused, Shares};
use crate::limits::ServerLimits;

/// What a port has refused.
#[derive(Debug, Clone, Default)]
pub struct Refusals {
    /// Connections and requests of addresses that make them too fast.
    pub rate: Counter,
    /// Connections of an address or a peer whose share is busy.
    pub share: Counter,
    /// Connections and requests, while the whole port is busy.
    pub full: Counter,
    /// Idle connections that gave way to a newer one.
    pub gave_way: Counter,
}

impl Refusals {
    /// Counters by reason: `rate`, `share`, `full`, `gave-way`.
    pub fn by_reason(mut counter: impl FnMut(&'static str) -> Counter) -> Self {
        let [rate, share] = ["rate", "share"].map(&mut counter);
        let [full, gave_way] = ["full", "gave-way"].map(&mut counter);
        Refusals { rate, share, full, gave_way }
    }

    fn count(&self, refused: Refused) {
        match refused {
            Refused::Rate => self.rate.inc(),
            Refused::Share => self.share.inc(),
            Refused::Full => self.full.inc(),
        };
    }
}

/// The gate of one port.
#[derive(Debug)]
pub(super) struct Gate {
    started: Instant,
    refusals: Refusals,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    shares: Shares,
    /// Of each connection: cancelled when it has to give way.
    yields: BTreeMap<Id, CancellationToken>,
}

impl Inner {
    /// Ends a connection that gives way.
    fn end(&mut self, id: Id, refusals: &Refusals) {
        if let Some(token) = self.yields.remove(&id) {
            token.cancel();
            refusals.gave_way.inc();
        }
    }
}

impl Gate {
    pub(super) fn new(limits: &ServerLimits, tls: bool) -> Arc<Self> {
        let inner = Inner { shares: Shares::new(limits.clone(), tls), yields: BTreeMap::new() };
        let refusals = limits.refusals.clone();
        Arc::new(Gate { started: Instant::now(), refusals, inner: Mutex::new(inner) })
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// A client has connected; `None` if it is refused.
    pub(super) fn admit(self: &Arc<Self>, from: IpAddr) -> Option<Pass> {
        let mut inner = self.inner.lock();
        match inner.shares.admit(from.into(), self.now()) {
            Ok((id, yields)) => {
                yields.iter().for_each(|id| inner.end(*id, &self.refusals));
                let yielded = CancellationToken::new();
                inner.yields.insert(id, yielded.clone());
                Some(Pass { gate: Arc::clone(self), id, yielded, busy: AtomicBool::new(false) })
            }
            Err(refused) => {
                self.refusals.count(refused);
                None
            }
        }
    }

    /// Counts a request that the whole port has no room for.
    pub(super) fn count_full(&self) {
        self.refusals.full.inc();
    }
}

/// An admitted connection, until it is dropped.
#[derive(Debug)]
pub(super) struct Pass {
    gate: Arc<Gate>,
    id: Id,
    /// Cancelled when the connection has to give way.
    pub(super) yielded: CancellationToken,
    busy: AtomicBool,
}

impl Pass {
    /// Whether the connection may stay now that its peer is known.
    pub(super) fn certify(&self, peer: &Peer) -> bool {
        let mut inner = self.gate.inner.lock();
        match inner.shares.certify(self.id, peer) {
            Ok(yields) => {
                yields.iter().for_each(|id| inner.end(*id, &self.gate.refusals));
                true
            }
            Err(refused) => {
                self.gate.refusals.count(refused);
                false
            }
        }
    }

    /// A request starts, if its sender's rate permits: until the guard is dropped, the connection
    /// is busy.
    pub(super) fn ask(self: &Arc<Self>) -> Option<Busy> {
        if !self.gate.inner.lock().shares.may_ask(self.id, self.gate.now()) {
            self.gate.refusals.count(Refused::Rate);
            return None;
        }
        Some(self.keep_busy())
    }

    /// Until the guard is dropped, the connection does not give way.
    pub(super) fn keep_busy(self: &Arc<Self>) -> Busy {
        self.set_busy(true);
        Busy(Arc::clone(self))
    }

    /// Whether a request is in progress.
    pub(super) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::SeqCst)
    }

    fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::SeqCst);
        self.gate.inner.lock().shares.set_busy(self.id, busy, self.gate.now());
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut inner = self.gate.inner.lock();
        inner.shares.leave(self.id);
        inner.yields.remove(&self.id);
    }
}

/// A request in progress.
#[derive(Debug)]
pub(super) struct Busy(Arc<Pass>);

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.set_busy(false);
    }
}
