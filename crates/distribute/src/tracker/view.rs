//! A transfer, for people: what `cohort status` and the API show.

use std::time::Instant;

use cohort_core::ids::{Digest, ServerId};
use serde::{Deserialize, Serialize};

use super::transfer::{Transfer, UNIT_BYTES};

/// How a transfer stands in the group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TransferView {
    /// Root of the artifact.
    pub artifact: Digest,
    /// Its length in bytes.
    pub length: u64,
    /// Since when, in milliseconds.
    pub for_ms: u64,
    /// Bytes that came from mirrors, over all servers.
    pub mirror_bytes: u64,
    /// Bytes that came from servers, over all servers.
    pub peer_bytes: u64,
    /// What the mirrors give now, in bytes per second.
    pub mirror_rate: u64,
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
    /// Servers that sent it wrong bytes.
    pub refuses: Vec<ServerId>,
}

impl Transfer {
    pub(super) fn view(&self, artifact: &Digest, now: Instant) -> TransferView {
        let servers: Vec<ServerView> = self
            .seen
            .iter()
            .map(|(id, seen)| ServerView {
                server: id.clone(),
                parent: self.layout.parents.get(id).cloned(),
                depth: self.layout.depth(id),
                held: seen.have.held(),
                units: self.units,
                rate: seen.rate,
                slow: seen.is_slow(),
                there: self.is_there(id, seen, now),
                refuses: self
                    .members(now)
                    .get(id)
                    .map_or_else(Vec::new, |member| member.refuses.iter().cloned().collect()),
            })
            .collect();
        let least = servers.iter().filter(|s| s.there && s.held < s.units).min_by_key(|s| s.held);
        let left_ms = least.and_then(|server| {
            let bytes = u64::from(server.units - server.held) * UNIT_BYTES;
            bytes.saturating_mul(1_000).checked_div(server.rate)
        });
        let heads = self.layout.heads.iter();
        TransferView {
            artifact: artifact.clone(),
            length: self.length,
            for_ms: u64::try_from(now.saturating_duration_since(self.begun).as_millis())
                .unwrap_or(u64::MAX),
            mirror_bytes: self.seen.values().map(|seen| seen.mirror_bytes).sum(),
            peer_bytes: self.seen.values().map(|seen| seen.peer_bytes).sum(),
            mirror_rate: heads.filter_map(|id| Some(self.seen.get(id)?.mirror_rate)).sum(),
            whole: self.seen.values().filter(|seen| seen.have.is_full()).count(),
            heads: self.layout.heads.clone(),
            fan_out: self.layout.fan_out,
            left_ms,
            servers,
        }
    }
}
