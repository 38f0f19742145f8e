//! A transfer, for people: what `cohort status` and the API show.

use std::collections::BTreeMap;
use std::time::Duration;

use cohort_core::ids::{Digest, ServerId};
use serde::{Deserialize, Serialize};

use super::ledger::Entry;
use super::message::Accusation;
use super::transfer::Transfer;
use crate::{Moment, UNIT_BYTES};

/// How a transfer stands in the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferView {
    /// Root of the artifact.
    pub artifact: Digest,
    /// Its length in bytes.
    pub length: u64,
    /// Since when, in milliseconds.
    pub for_ms: u64,
    /// For how long nobody has reported, in milliseconds.
    pub idle_ms: u64,
    /// Whether somebody who can be reached lacks some of it.
    pub under_way: bool,
    /// How long it took until the last one had it whole, in milliseconds; nothing before that, nor
    /// when somebody went away without it.
    pub took_ms: Option<u64>,
    /// Bytes that came from mirrors, over all servers.
    pub mirror_bytes: u64,
    /// Bytes that came from servers, over all servers.
    pub peer_bytes: u64,
    /// What the mirrors give now, in bytes per second.
    pub mirror_rate: u64,
    /// What mirrors gave over the whole transfer, in bytes per second; nothing when it was too
    /// little to tell.
    pub downlink_rate: Option<u64>,
    /// Servers that have it whole.
    pub whole: usize,
    /// Those that ask mirrors.
    pub heads: Vec<ServerId>,
    /// Children that a server may have.
    pub fan_out: usize,
    /// When all will have it at this rate, in milliseconds; nothing when that cannot be said.
    pub left_ms: Option<u64>,
    /// Every server.
    pub servers: Vec<ServerView>,
}

/// How it stands at one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerView {
    /// Which.
    pub server: ServerId,
    /// Its parent.
    pub parent: Option<ServerId>,
    /// Links to the first source.
    pub depth: usize,
    /// Units that it holds.
    pub held: u32,
    /// Of how many.
    pub units: u32,
    /// What it receives now, in bytes per second.
    pub rate: u64,
    /// It cannot keep up.
    pub slow: bool,
    /// It can be reached.
    pub there: bool,
    /// Others refuse it: it sends to nobody.
    pub barred: bool,
    /// What its sources did to it.
    pub accusations: Vec<Accusation>,
}

impl ServerView {
    fn lacks(&self) -> bool {
        self.there && self.held < self.units
    }
}

impl Transfer {
    pub(super) fn view(&self, artifact: &Digest, now: Moment) -> TransferView {
        let ms = |over: Duration| u64::try_from(over.as_millis()).unwrap_or(u64::MAX);
        let depths = self.depths();
        let servers: Vec<ServerView> = self
            .seen
            .iter()
            .map(|(id, seen)| ServerView {
                server: id.clone(),
                parent: self.layout.parents.get(id).cloned(),
                depth: depths.get(id).copied().unwrap_or(0),
                held: seen.have.held(),
                units: self.units,
                rate: seen.rate,
                slow: seen.is_slow(),
                there: self.is_there(id, seen, now),
                barred: self.barred.contains(id),
                accusations: self
                    .ledger
                    .of(id)
                    .map_or_else(Vec::new, |entry| entry.accusations.clone()),
            })
            .collect();
        let under_way = servers.iter().any(ServerView::lacks);
        let last_whole = self.ledger.entries().filter_map(|(_, entry)| entry.whole).max();
        let sum = |of: fn(&Entry) -> u64| {
            self.ledger.entries().fold(0, |sum: u64, (_, entry)| sum.saturating_add(of(entry)))
        };
        let heads = self.layout.heads.iter().filter(|_| under_way);
        TransferView {
            artifact: artifact.clone(),
            length: self.length,
            for_ms: ms(now.saturating_sub(self.begun)),
            idle_ms: ms(now.saturating_sub(self.heard())),
            under_way,
            took_ms: last_whole
                .filter(|_| servers.iter().all(|server| server.held >= server.units))
                .map(|at| ms(at.saturating_sub(self.begun))),
            mirror_bytes: sum(Entry::mirror_bytes),
            peer_bytes: sum(Entry::peer_bytes),
            mirror_rate: heads.clone().filter_map(|id| Some(self.seen.get(id)?.mirror_rate)).sum(),
            downlink_rate: self.ledger.downlink_rate(),
            whole: self.seen.values().filter(|seen| seen.have.is_full()).count(),
            heads: heads.cloned().collect(),
            fan_out: self.layout.fan_out,
            left_ms: left_ms(&servers),
            servers,
        }
    }

    /// Links above every server. Chains of hundreds are walked once, not once from each server.
    fn depths(&self) -> BTreeMap<&ServerId, usize> {
        let parents = &self.layout.parents;
        let mut depths: BTreeMap<&ServerId, usize> = BTreeMap::new();
        for server in self.seen.keys() {
            let mut path: Vec<&ServerId> = Vec::new();
            let mut at = server;
            while !depths.contains_key(at) && path.len() <= parents.len() {
                path.push(at);
                match parents.get(at) {
                    Some(parent) => at = parent,
                    None => break,
                }
            }
            // The last one on the path is a root, or its parent's depth is known.
            let first = depths.get(at).map_or(0, |depth| depth + 1);
            depths.extend(path.into_iter().rev().zip(first..));
        }
        depths
    }
}

/// By the server that needs longest, of those whose rate is known.
fn left_ms(servers: &[ServerView]) -> Option<u64> {
    let lacking = servers.iter().filter(|server| server.lacks());
    let each = lacking.filter_map(|server| {
        let bytes = u64::from(server.units - server.held) * UNIT_BYTES;
        bytes.saturating_mul(1_000).checked_div(server.rate)
    });
    each.max()
}
