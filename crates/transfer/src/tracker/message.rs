//! A server's report to the leader about its transfers, and the response.

use cohort_core::ids::{Digest, ServerId};
use cohort_core::orders::Source;
use serde::{Deserialize, Serialize};

use super::TrackerError;
use crate::guidance::Guidance;
use crate::offence::Offence;
use crate::source::{SourceKind, SourceName, SourceReport};
use crate::unit_set::UnitRun;
use crate::{ARTIFACT_BYTES_MAX, UNIT_BYTES};

/// `POST` a [`TransferRequest`], as a message to the group, to the leader's control port.
pub const TRANSFER: &str = "/v1/transfer";

/// Most transfers in one request: a server fetches two at a time, the others are queued.
pub const REPORTS_MAX: usize = 8;

/// Most runs of held units in a report. Units beyond count as missing, which costs only a few
/// bytes.
pub const HAVE_RUNS_MAX: usize = 256;

/// Most bytes that one fetch may report: every unit of the longest artifact, 64 times.
const BYTES_MAX: u64 = 64 * ARTIFACT_BYTES_MAX;

/// Most holders in a report: twice as many as an order names.
pub const HOLDERS_MAX: usize = 8;

/// Most offences in a report: a server has one parent, a few spares, and few mirrors.
pub const OFFENCES_MAX: usize = 16;

/// The state of a server's transfers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferRequest {
    /// At most [`REPORTS_MAX`].
    pub transfers: Vec<TransferReport>,
}

impl TransferRequest {
    /// Checks that nothing exceeds its limit, so that no report costs the leader much.
    ///
    /// # Errors
    /// Names the first thing that does.
    pub fn check(&self) -> Result<(), TrackerError> {
        let (count, max) = (self.transfers.len() as u64, REPORTS_MAX as u64);
        if count > max {
            return Err(TrackerError::TooMany { what: "transfers", count, max });
        }
        self.transfers.iter().try_for_each(TransferReport::check)
    }

    /// Drops what contradicts the group's log: artifacts of another length than the log has (it has
    /// none for deltas), and holders that are not in the group. Holders get the address from the
    /// log.
    pub fn keep_known(
        &mut self,
        length: impl Fn(&Digest) -> Option<u64>,
        holder: impl Fn(&Digest, &ServerId) -> Option<String>,
    ) {
        self.transfers
            .retain(|report| length(&report.artifact).is_none_or(|known| known == report.length));
        for report in &mut self.transfers {
            report.holders.retain_mut(|known| {
                let address = holder(&report.artifact, &known.server);
                let known_to_log = address.is_some();
                known.address = address.unwrap_or_default();
                known_to_log
            });
        }
    }
}

/// The state of one transfer at one server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferReport {
    pub artifact: Digest,
    pub length: u64,
    /// The verified units on disk; at most [`HAVE_RUNS_MAX`] runs.
    pub have: Vec<UnitRun>,
    /// Bytes that this fetch received from mirrors.
    pub mirror_bytes: u64,
    /// Bytes that this fetch received from servers.
    pub peer_bytes: u64,
    /// Every mirror that was asked failed repeatedly.
    pub mirror_failed: bool,
    /// Its mirrors asked to back off, or it pauses before a retry.
    #[serde(default)]
    pub mirror_busy: bool,
    /// Guidance from this leader or the last one, if any.
    pub told: Option<Told>,
    /// Servers that hold it whole, according to its order.
    pub holders: Vec<Source>,
    /// Servers that failed it since their last good unit.
    pub silent: Vec<ServerId>,
    /// Servers that sent it wrong bytes.
    pub wrong: Vec<ServerId>,
    /// What it blames its sources for; at most [`OFFENCES_MAX`] entries.
    #[serde(default)]
    pub offences: Vec<Accusation>,
}

/// What one fetch blames one source for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Accusation {
    pub source: SourceName,
    pub what: Offence,
    pub count: u32,
}

impl TransferReport {
    /// A report of a fetch that has no units yet.
    #[must_use]
    pub fn new(artifact: Digest, length: u64) -> Self {
        Self {
            artifact,
            length,
            have: Vec::new(),
            mirror_bytes: 0,
            peer_bytes: 0,
            mirror_failed: false,
            mirror_busy: false,
            told: None,
            holders: Vec::new(),
            silent: Vec::new(),
            wrong: Vec::new(),
            offences: Vec::new(),
        }
    }

    /// Adds the guidance that the server received.
    pub fn told(&mut self, guidance: Option<&Guidance>) {
        self.told = guidance.map(|guidance| Told {
            feeds: guidance.feeds.iter().map(|source| source.server.clone()).collect(),
            lease: guidance.lease.clone(),
        });
    }

    /// Adds the state of the fetch's sources.
    pub fn sources(&mut self, sources: &[SourceReport]) {
        let servers = |which: fn(&SourceReport) -> bool| {
            let found = sources.iter().filter(|source| which(source));
            found.filter_map(|source| source.source.server().cloned()).take(HAVE_RUNS_MAX).collect()
        };
        self.silent = servers(|source| source.failures > 0);
        self.wrong = servers(|source| source.refused_units > 0);
        let mirrors = || sources.iter().filter(|s| s.source.kind() == SourceKind::Mirror);
        self.mirror_failed = mirrors().next().is_some() && mirrors().all(|s| s.failures > 1);
        let offences = sources.iter().flat_map(|report| {
            report.offences.iter().map(|(what, count)| Accusation {
                source: report.source.clone(),
                what: *what,
                count: *count,
            })
        });
        self.offences = offences.take(OFFENCES_MAX).collect();
    }

    fn check(&self) -> Result<(), TrackerError> {
        let (feeds, lease) = self
            .told
            .as_ref()
            .map_or((&[][..], &[][..]), |told| (&told.feeds[..], &told.lease[..]));
        let lists = [feeds.len(), lease.len(), self.silent.len(), self.wrong.len()];
        let longest = lists.into_iter().fold(self.have.len(), usize::max);
        for (what, count, max) in [
            ("entries", longest as u64, HAVE_RUNS_MAX as u64),
            ("holders", self.holders.len() as u64, HOLDERS_MAX as u64),
            ("offences", self.offences.len() as u64, OFFENCES_MAX as u64),
            ("bytes", self.mirror_bytes.max(self.peer_bytes), BYTES_MAX),
        ] {
            if count > max {
                return Err(TrackerError::TooMany { what, count, max });
            }
        }
        let artifact = || self.artifact.clone();
        if self.length > ARTIFACT_BYTES_MAX {
            return Err(TrackerError::TooLong { artifact: artifact(), length: self.length });
        }
        let units = self.length.div_ceil(UNIT_BYTES);
        if !in_order(&self.have, units) || !in_order(lease, units) {
            return Err(TrackerError::Runs { artifact: artifact() });
        }
        Ok(())
    }
}

/// Whether runs ascend without overlap and stay below the number of units.
fn in_order(runs: &[UnitRun], units: u64) -> bool {
    let mut from = 0;
    runs.iter().all(|run| {
        let first = u64::from(run.first);
        let right = run.count > 0 && first >= from;
        from = first + u64::from(run.count);
        right && from <= units
    })
}

/// A server's guidance, for a new leader to adopt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Told {
    /// Its feeds, the parent first.
    pub feeds: Vec<ServerId>,
    pub lease: Vec<UnitRun>,
}

/// The leader's response to a report.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransferAnswer {
    /// Report again after this long, in milliseconds, or earlier if something urgent happens.
    pub again_ms: u64,
    /// Guidance by artifact. An artifact without an entry keeps its guidance.
    pub guidance: Vec<(Digest, Guidance)>,
    /// Rate of the mirrors in the transfers of this request, in bytes per second, if known. Every
    /// server remembers it, so that the next leader can estimate the duration of a release's
    /// transfer.
    #[serde(default)]
    pub downlink_rate: Option<u64>,
}
