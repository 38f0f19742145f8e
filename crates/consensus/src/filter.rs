//! Numbers outgoing messages and checks incoming ones.
//!
//! Trap: append replies that overtake each other after a broken connection set the leader's
//! progress for a peer back behind what the peer has confirmed (tikv/raft-rs#557), and a duplicate
//! read request gets a stale answer. With this filter, the network may misbehave arbitrarily.

use std::collections::BTreeMap;

use cohort_store::RaftId;

use crate::{Config, Envelope, Message, status::Dropped};

/// Bits of a session that count the connections since the start.
const CONNECTION_BITS: u32 = 24;

/// The largest boot epoch: the remaining bits of a session's 64.
pub(crate) const BOOT_EPOCH_MAX: u64 = (1 << (64 - CONNECTION_BITS)) - 1;

/// The boot epoch in a session.
pub(crate) fn boot_epoch_of(session: u64) -> u64 {
    session >> CONNECTION_BITS
}

#[derive(Debug)]
pub(crate) struct Filter {
    group: String,
    incarnation: u64,
    id: RaftId,
    life: u64,
    first_session: u64,
    off: bool,
    outgoing: BTreeMap<RaftId, (u64, u64)>,
    incoming: BTreeMap<RaftId, (u64, u64)>,
    pub(crate) dropped: Dropped,
}

impl Filter {
    pub(crate) fn new(config: &Config) -> Self {
        Filter {
            group: config.group.clone(),
            incarnation: config.incarnation,
            id: config.id,
            life: config.life,
            first_session: config.boot_epoch << CONNECTION_BITS,
            off: config.weaken.no_filter,
            outgoing: BTreeMap::new(),
            incoming: BTreeMap::new(),
            dropped: Dropped::default(),
        }
    }

    /// A new connection to `to` exists: messages in flight on the old one are void.
    pub(crate) fn connected(&mut self, to: RaftId) {
        let (session, sequence) = self.outgoing.entry(to).or_insert((self.first_session, 0));
        let connection_last = self.first_session | ((1 << CONNECTION_BITS) - 1);
        if *session < connection_last {
            *session += 1;
            *sequence = 0;
        }
    }

    /// Addresses and numbers a message.
    pub(crate) fn envelope(&mut self, to: RaftId, written: u64, message: Message) -> Envelope {
        let (session, sequence) = self.outgoing.entry(to).or_insert((self.first_session, 0));
        *sequence += 1;
        Envelope {
            group: self.group.clone(),
            incarnation: self.incarnation,
            from: self.id,
            to,
            life: self.life,
            written,
            session: *session,
            sequence: *sequence,
            message,
        }
    }

    /// A peer's process has started: its messages are numbered from the start.
    pub(crate) fn forget(&mut self, peer: RaftId) {
        self.incoming.remove(&peer);
    }

    /// Whether a message is for this member.
    pub(crate) fn is_addressed(&mut self, envelope: &Envelope) -> bool {
        if envelope.group != self.group
            || envelope.incarnation != self.incarnation
            || envelope.to != self.id
            || envelope.from == self.id
        {
            self.dropped.strangers += 1;
            return false;
        }
        true
    }

    /// Whether a message is in order.
    pub(crate) fn in_order(&mut self, envelope: &Envelope) -> bool {
        let last = self.incoming.entry(envelope.from).or_insert((0, 0));
        let this = (envelope.session, envelope.sequence);
        if this <= *last && !self.off {
            self.dropped.late += 1;
            return false;
        }
        *last = this;
        true
    }
}
