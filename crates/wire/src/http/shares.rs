//! The shares of a port: who may connect, and which connection gives way. It knows neither clocks
//! nor sockets.
//!
//! Before the handshake, the only thing that is known of a client is its address: such a
//! *stranger* counts in the share of its network, both its connections and how fast it makes them.
//! With a certificate, it moves to the share of its peer. Strangers have a part of the port of
//! their own: however many they are, they take nothing from peers.
//!
//! Whoever has used up a share gets a new connection at the cost of the oldest idle one of the same
//! share, so that connections that are merely held block nobody.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use cohort_identity::{Peer, Role};

use crate::limits::{NETWORKS_MAX, OPERATORS_RESERVE, ServerLimits};

/// An address as the shares count it: an IPv6 host has a whole /64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Network(IpAddr);

impl From<IpAddr> for Network {
    fn from(address: IpAddr) -> Self {
        Network(match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0).into()
            }
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// Whose share a connection counts in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Holder {
    Stranger(Network),
    Peer(Peer),
}

/// Why a connection or a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// The address makes them too fast.
    Rate,
    /// The share is used up, and everything in it is busy.
    Share,
    /// The port is, and everything that could give way is busy.
    Full,
}

/// The number of a connection.
pub(super) type Id = u64;

#[derive(Debug)]
struct Place {
    holder: Holder,
    busy: bool,
    /// When it became idle or busy, since the start of the port.
    since: Duration,
}

/// All connections of a port.
#[derive(Debug)]
pub(super) struct Shares {
    limits: ServerLimits,
    /// Most connections without a certificate.
    strangers_max: usize,
    places: BTreeMap<Id, Place>,
    held: BTreeMap<Holder, BTreeSet<Id>>,
    strangers: usize,
    rates: BTreeMap<Network, Rates>,
    next: Id,
}

/// How fast a network may still connect, and make requests without a certificate.
#[derive(Debug)]
struct Rates {
    connections: Bucket,
    requests: Bucket,
}

impl Shares {
    /// The shares of a port; `tls` if it has peers with certificates.
    pub(super) fn new(limits: ServerLimits, tls: bool) -> Self {
        let strangers_max = if tls { limits.strangers_max } else { limits.connections_max };
        Shares {
            limits,
            strangers_max,
            places: BTreeMap::new(),
            held: BTreeMap::new(),
            strangers: 0,
            rates: BTreeMap::new(),
            next: 0,
        }
    }

    /// A client has connected. On success, its number, and that of the connection that gives way.
    pub(super) fn admit(
        &mut self,
        from: Network,
        now: Duration,
    ) -> Result<(Id, Option<Id>), Refused> {
        self.prune(now);
        if !self.rates(from, now).connections.take(now) {
            return Err(Refused::Rate);
        }
        let holder = Holder::Stranger(from);
        let yields = if self.count(&holder) >= self.limits.strangers_per_address_max {
            Some(self.oldest(&holder).ok_or(Refused::Share)?)
        } else if self.strangers >= self.strangers_max {
            let is_stranger = |holder: &Holder| matches!(holder, Holder::Stranger(_));
            Some(self.oldest_of_largest(is_stranger).ok_or(Refused::Full)?)
        } else {
            None
        };
        if let Some(yields) = yields {
            self.leave(yields);
        }
        let id = self.next;
        self.next += 1;
        self.places.insert(id, Place { holder: holder.clone(), busy: false, since: now });
        self.enter(holder, id);
        Ok((id, yields))
    }

    /// A client has shown a certificate. Returns the connection that gives way.
    pub(super) fn certify(&mut self, id: Id, peer: &Peer) -> Result<Option<Id>, Refused> {
        let holder = Holder::Peer(peer.clone());
        let reserve = if peer.role == Role::Operator { OPERATORS_RESERVE } else { 0 };
        let peers = self.places.len() - self.strangers;
        let peers_max = self.limits.connections_max.saturating_sub(self.strangers_max);
        let yields = if self.count(&holder) >= self.limits.connections_per_peer_max {
            Some(self.oldest(&holder).ok_or(Refused::Share)?)
        } else if peers >= peers_max {
            let is_peer = |holder: &Holder| matches!(holder, Holder::Peer(_));
            match self.oldest_of_largest(is_peer) {
                None if peers < peers_max + reserve => None,
                yields => Some(yields.ok_or(Refused::Full)?),
            }
        } else {
            None
        };
        if let Some(yields) = yields {
            self.leave(yields);
        }
        // It may have given way meanwhile.
        if let Some(mut place) = self.take_out(id) {
            place.holder = holder.clone();
            self.places.insert(id, place);
            self.enter(holder, id);
        }
        Ok(yields)
    }

    /// Whether a connection may make another request now: without a certificate, its address has a
    /// rate.
    pub(super) fn may_ask(&mut self, id: Id, now: Duration) -> bool {
        let stranger = self.places.get(&id).and_then(|place| match &place.holder {
            Holder::Stranger(network) => Some(*network),
            Holder::Peer(_) => None,
        });
        stranger.is_none_or(|network| self.rates(network, now).requests.take(now))
    }

    /// A request is in progress, or not any more.
    pub(super) fn set_busy(&mut self, id: Id, busy: bool, now: Duration) {
        if let Some(place) = self.places.get_mut(&id) {
            (place.busy, place.since) = (busy, now);
        }
    }

    /// A connection has ended.
    pub(super) fn leave(&mut self, id: Id) {
        self.take_out(id);
    }

    fn take_out(&mut self, id: Id) -> Option<Place> {
        let place = self.places.remove(&id)?;
        if let Some(held) = self.held.get_mut(&place.holder) {
            held.remove(&id);
            if held.is_empty() {
                self.held.remove(&place.holder);
            }
        }
        self.strangers -= usize::from(matches!(place.holder, Holder::Stranger(_)));
        Some(place)
    }

    fn enter(&mut self, holder: Holder, id: Id) {
        self.strangers += usize::from(matches!(holder, Holder::Stranger(_)));
        self.held.entry(holder).or_default().insert(id);
    }

    fn count(&self, holder: &Holder) -> usize {
        self.held.get(holder).map_or(0, BTreeSet::len)
    }

    /// The connection of a share that gives way: the one that has been idle for longest. Where
    /// requests are short, a busy one does not read its answer, and gives way too.
    fn oldest(&self, holder: &Holder) -> Option<Id> {
        let held = self.held.get(holder)?;
        let places = held.iter().filter_map(|id| Some((id, self.places.get(id)?)));
        places
            .filter(|(_, place)| !place.busy || self.limits.requests_are_short)
            .min_by_key(|(_, place)| (place.busy, place.since))
            .map(|(id, _)| *id)
    }

    /// The same, of the largest share in which one can.
    fn oldest_of_largest(&self, of: impl Fn(&Holder) -> bool) -> Option<Id> {
        // Of equal shares, the oldest connection: a handshake takes milliseconds.
        let ends =
            self.held.iter().filter(|(holder, _)| of(holder)).filter_map(|(holder, held)| {
                let id = self.oldest(holder)?;
                Some((held.len(), std::cmp::Reverse(self.places.get(&id)?.since), id))
            });
        ends.max_by_key(|(count, since, _)| (*count, *since)).map(|(.., id)| id)
    }

    fn rates(&mut self, network: Network, now: Duration) -> &mut Rates {
        let limits = &self.limits;
        self.rates.entry(network).or_insert_with(|| Rates {
            connections: Bucket::full(limits.connects_per_s_max, limits.connects_burst_max, now),
            requests: Bucket::full(limits.requests_per_s_max, limits.requests_burst_max, now),
        })
    }

    /// Forgets networks that have been quiet for long enough to count as new. If there are still
    /// more than memory is meant for, the quieter half: who makes many connections stays known.
    fn prune(&mut self, now: Duration) {
        if self.rates.len() < NETWORKS_MAX {
            return;
        }
        self.rates
            .retain(|_, rates| !(rates.connections.is_full(now) && rates.requests.is_full(now)));
        if self.rates.len() >= NETWORKS_MAX {
            let left = |rates: &Rates| rates.connections.left(now);
            let mut all: Vec<u64> = self.rates.values().map(left).collect();
            let middle = all.len() / 2;
            let (_, &mut median, _) = all.select_nth_unstable(middle);
            self.rates.retain(|_, rates| left(rates) < median);
        }
    }
}

/// A rate with a burst.
#[derive(Debug)]
struct Bucket {
    per_s: u64,
    /// In thousandths.
    capacity: u64,
    left: u64,
    at: Duration,
}

impl Bucket {
    fn full(per_s: u32, burst: u32, now: Duration) -> Self {
        let capacity = u64::from(burst) * 1000;
        Bucket { per_s: per_s.into(), capacity, left: capacity, at: now }
    }

    fn left(&self, now: Duration) -> u64 {
        let ms = u64::try_from(now.saturating_sub(self.at).as_millis()).unwrap_or(u64::MAX);
        self.left.saturating_add(ms.saturating_mul(self.per_s)).min(self.capacity)
    }

    fn is_full(&self, now: Duration) -> bool {
        self.left(now) == self.capacity
    }

    fn take(&mut self, now: Duration) -> bool {
        // Not the remainder of a millisecond: many calls within one would each lose it.
        let now = Duration::from_millis(u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
        (self.left, self.at) = (self.left(now), self.at.max(now));
        let enough = self.left >= 1000;
        self.left -= if enough { 1000 } else { 0 };
        enough
    }
}

#[cfg(test)]
#[path = "shares_test.rs"]
mod shares_test;
