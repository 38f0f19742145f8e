//! The hub's audit trail: every change that it accepted, each line naming the hash of the one
//! before, so that nothing in between can be changed or left out unnoticed.

use cohort_identity::sha256_hex;
use serde::{Deserialize, Serialize};

/// `GET`, operators: lines of the audit trail, after the number in the query `after`.
pub const AUDIT: &str = "/v1/audit";

/// Most lines in one answer: 500 have 200 KiB.
pub const AUDIT_LINES_MAX: usize = 500;

/// A change that the hub accepted; one line of JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditEntry {
    /// 1 for the first, without gaps.
    pub seq: u64,
    /// Unix seconds, by the hub's clock.
    pub at: u64,
    /// Who sent the request: a peer, or `nobody`, who has no certificate yet.
    pub by: String,
    /// What proves that.
    pub proof: String,
    /// The address that the request came from.
    pub from: String,
    /// What changed; for what others have signed, also who did.
    pub what: String,
    /// SHA-256 of the line before, 64 hexadecimal digits; zeros for the first.
    pub before: String,
}

/// Response to [`AUDIT`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditPage {
    /// As they are on disk, oldest first; at most [`AUDIT_LINES_MAX`]. The hub keeps the last
    /// gigabyte, so the first may come later than asked for.
    pub lines: Vec<String>,
    /// The number of the last line that there is.
    pub last: u64,
}

/// A place in the chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChainEnd {
    pub seq: u64,
    /// SHA-256 of that line.
    pub hash: String,
}

impl Default for ChainEnd {
    /// Before the first line.
    fn default() -> Self {
        ChainEnd { seq: 0, hash: "0".repeat(64) }
    }
}

impl ChainEnd {
    /// The place after a line, whatever is before it.
    ///
    /// # Errors
    /// If it is not an entry.
    pub fn at(line: &str) -> Result<(Self, AuditEntry), BrokenChain> {
        let entry: AuditEntry = serde_json::from_str(line).map_err(BrokenChain::Malformed)?;
        Ok((ChainEnd { seq: entry.seq, hash: sha256_hex(line.as_bytes()) }, entry))
    }

    /// The place after the next line.
    ///
    /// # Errors
    /// If the line does not follow.
    pub fn follow(&self, line: &str) -> Result<(Self, AuditEntry), BrokenChain> {
        let (next, entry) = Self::at(line)?;
        if entry.seq != self.seq + 1 {
            return Err(BrokenChain::Gap { after: self.seq, found: entry.seq });
        }
        if entry.before != self.hash {
            return Err(BrokenChain::Changed { seq: self.seq });
        }
        Ok((next, entry))
    }
}

/// Why lines are no chain.
#[derive(Debug, thiserror::Error)]
pub enum BrokenChain {
    #[error("a line of the audit trail is malformed")]
    Malformed(#[source] serde_json::Error),
    #[error("after entry {after} of the audit trail comes {found}")]
    Gap { after: u64, found: u64 },
    #[error("entry {seq} of the audit trail is not the one that the next one follows")]
    Changed { seq: u64 },
}
