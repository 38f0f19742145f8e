//! A transfer as `cohort status` and the API show it.

use std::collections::BTreeMap;
use std::time::Duration;

use cohort_core::ids::{Digest, ServerId};
use serde::{Deserialize, Serialize};

use super::message::Accusation;
use super::seen::Seen;
use super::transfer::Transfer;
use crate::{Moment, UNIT_BYTES};

/// The state of a transfer in its group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferView {
    pub artifact: Digest,
    pub length: u64,
    /// How long ago the first report came, in milliseconds.
    pub for_ms: u64,
    /// How long ago the last report came, in milliseconds.
    pub idle_ms: u64,
    /// Whether a reachable server still lacks some of it.
    pub under_way: bool,
    /// How long it took until the last server held it whole, in milliseconds; `None` before that,
    /// and if a server left without it.
    pub took_ms: Option<u64>,
    /// Bytes from mirrors, over all servers.
    pub mirror_bytes: u64,
    /// Bytes from servers, over all servers.
    pub peer_bytes: u64,
    /// Current rate of the mirrors, in bytes per second.
    pub mirror_rate: u64,
    /// Rate of the mirrors over the whole transfer, in bytes per second; `None` if it is too short
    /// to tell.
    pub downlink_rate: Option<u64>,
    pub whole: usize,
    /// Servers that fetch from mirrors.
    pub heads: Vec<ServerId>,
    /// Most children per server.
    pub fan_out: usize,
    /// Estimated time until all have it, in milliseconds; `None` if rates are unknown.
    pub left_ms: Option<u64>,
    /// Every server that reported, or that the log named.
    pub servers: Vec<ServerView>,
}

/// The state of a transfer at one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerView {
    pub server: ServerId,
    pub parent: Option<ServerId>,
    /// Links between the first source and this server.
    pub depth: usize,
    pub held: u32,
    pub units: u32,
    /// What it receives, in bytes per second.
    pub rate: u64,
    pub slow: bool,
    pub there: bool,
    /// Others refuse it, so it feeds no server.
    pub barred: bool,
    /// What it blames its sources for.
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
                accusations: seen.accusations.clone(),
            })
            .collect();
        let under_way = servers.iter().any(ServerView::lacks);
        let last_whole = self.seen.values().filter_map(|seen| seen.whole).max();
        let heads = self.layout.heads.iter().filter(|_| under_way);
        TransferView {
            artifact: artifact.clone(),
            length: self.length,
            for_ms: ms(now.saturating_sub(self.begun)),
            idle_ms: ms(now.saturating_sub(self.heard)),
            under_way,
            took_ms: last_whole
                .filter(|_| servers.iter().all(|server| server.held >= server.units))
                .map(|at| ms(at.saturating_sub(self.begun))),
            mirror_bytes: self.sum(Seen::all_mirror_bytes),
            peer_bytes: self.sum(Seen::all_peer_bytes),
            mirror_rate: heads.clone().filter_map(|id| Some(self.seen.get(id)?.mirror_rate)).sum(),
            downlink_rate: self.downlink_rate(),
            whole: self.seen.values().filter(|seen| seen.have.is_full()).count(),
            heads: heads.cloned().collect(),
            fan_out: self.layout.fan_out,
            left_ms: left_ms(&servers),
            servers,
        }
    }

    /// Number of links above each server. Chains of hundreds are walked once, not once per server.
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
            // The path ends at a root, or below a server of known depth.
            let first = depths.get(at).map_or(0, |depth| depth + 1);
            depths.extend(path.into_iter().rev().zip(first..));
        }
        depths
    }
}

/// The longest estimate of all servers whose rate is known.
fn left_ms(servers: &[ServerView]) -> Option<u64> {
    let lacking = servers.iter().filter(|server| server.lacks());
    let each = lacking.filter_map(|server| {
        let bytes = u64::from(server.units - server.held) * UNIT_BYTES;
        bytes.saturating_mul(1_000).checked_div(server.rate)
    });
    each.max()
}
