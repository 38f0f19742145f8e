//! Protections that are switched off one at a time: a seed must find each of them.
//!
//! The switches are in [`Mutation`], which only this crate knows, and in the consensus's hidden
//! [`Weaken`], which no configuration of an operator reaches.

use cohort_consensus::Weaken;

use crate::fleet::chaos::{
    ALSO_ACTS, COLLECTED, DISPLACED, FORGOTTEN, LOST_ENTRY, Mutation, NOT_RIGHT, OTHER_ENTRY,
    OTHER_MEMBERS, OTHER_STATE, OWES, REPORTED_AGAIN, STALE_ORDER, STALE_READ, TOO_MANY_OUT,
    TOO_MANY_VOTERS, TWICE, Trace,
};
use crate::play::{CONSENSUS_STEPS, consensus, fleet};
use crate::raft::{self, Setup};

/// A protection, how it is switched off, and what its absence looks like.
pub struct Protection {
    /// Its name in `docs/testing.md`.
    pub name: &'static str,
    off: Off,
    /// A part of each violation that counts; empty: every violation does.
    checks: &'static [&'static str],
}

enum Off {
    Fleet(Mutation),
    Consensus { weaken: Weaken, lying_disks: bool },
}

/// Nothing switched off.
const ON: Weaken = Weaken {
    no_step_down: false,
    no_snapshot_report: false,
    lease_reads: false,
    no_filter: false,
    same_read_context: false,
    no_proof: false,
};

const fn consensus_without(weaken: Weaken) -> Off {
    Off::Consensus { weaken, lying_disks: false }
}

/// Every protection that can be switched off.
pub const PROTECTIONS: &[Protection] = &[
    Protection {
        name: "synced hard state",
        off: Off::Consensus { weaken: ON, lying_disks: true },
        checks: &[],
    },
    Protection {
        name: "synced entries",
        off: Off::Fleet(Mutation::DropsEntry),
        checks: &[LOST_ENTRY],
    },
    Protection {
        name: "step-down on leaving the configuration",
        off: consensus_without(Weaken { no_step_down: true, ..ON }),
        checks: &[raft::NOT_A_VOTER],
    },
    Protection {
        name: "snapshot reports",
        off: consensus_without(Weaken { no_snapshot_report: true, ..ON }),
        checks: &[raft::NOT_CONVERGED],
    },
    Protection { name: "safe reads", off: Off::Fleet(Mutation::StaleReads), checks: &[STALE_READ] },
    Protection {
        name: "safe reads, of the consensus alone",
        off: consensus_without(Weaken { lease_reads: true, ..ON }),
        checks: &[raft::STALE_READ],
    },
    Protection {
        name: "unique read contexts",
        off: consensus_without(Weaken { same_read_context: true, ..ON }),
        checks: &[raft::STALE_READ],
    },
    Protection {
        name: "proof that the disk is the latest",
        off: consensus_without(Weaken { no_proof: true, ..ON }),
        checks: &[],
    },
    Protection {
        name: "entries unaltered in transit",
        off: Off::Fleet(Mutation::AltersEntry),
        checks: &[OTHER_ENTRY],
    },
    Protection {
        name: "snapshots unaltered in transit",
        off: Off::Fleet(Mutation::Diverges),
        checks: &[OTHER_STATE],
    },
    Protection { name: "the host's fence", off: Off::Fleet(Mutation::HostFence), checks: &[TWICE] },
    Protection {
        name: "order validity",
        off: Off::Fleet(Mutation::OrderValidity),
        checks: &[STALE_ORDER],
    },
    Protection {
        name: "intent before action",
        off: Off::Fleet(Mutation::IntentBeforeAction),
        checks: &[TWICE],
    },
    Protection {
        name: "report deduplication",
        off: Off::Fleet(Mutation::ReportDeduplication),
        checks: &[REPORTED_AGAIN],
    },
    Protection {
        name: "debts before traffic",
        off: Off::Fleet(Mutation::DebtsBeforeTraffic),
        checks: &[OWES],
    },
    Protection {
        name: "confirm or undo",
        off: Off::Fleet(Mutation::ConfirmOrUndo),
        checks: &[NOT_RIGHT],
    },
    Protection {
        name: "last good kept from collection",
        off: Off::Fleet(Mutation::CollectsLastGood),
        checks: &[COLLECTED],
    },
    Protection { name: "ledger", off: Off::Fleet(Mutation::Ledger), checks: &[TOO_MANY_OUT] },
    Protection {
        name: "fence on registry writes",
        off: Off::Fleet(Mutation::RegistryFence),
        checks: &[OTHER_MEMBERS],
    },
    Protection {
        name: "kill latch before acknowledgement",
        off: Off::Fleet(Mutation::KillLatch),
        checks: &[FORGOTTEN],
    },
    Protection {
        name: "quorum margin",
        off: Off::Fleet(Mutation::QuorumMargin),
        checks: &[TOO_MANY_VOTERS],
    },
    Protection {
        name: "silence in the ledger",
        off: Off::Fleet(Mutation::Silence),
        checks: &[TOO_MANY_OUT],
    },
    Protection {
        name: "clone check",
        off: Off::Fleet(Mutation::CloneCheck),
        checks: &[DISPLACED, ALSO_ACTS],
    },
    Protection {
        name: "new id after a lost or restored disk",
        off: Off::Fleet(Mutation::NewMember),
        checks: &[NOT_RIGHT, LOST_ENTRY, OTHER_ENTRY],
    },
];

impl Protection {
    /// The violation that a seed finds while the protection is off, if it finds one that counts.
    #[must_use]
    pub fn found_by(&self, seed: u64) -> Option<String> {
        let played = match &self.off {
            Off::Fleet(mutation) => fleet(seed, Some(*mutation), &Trace::Off),
            Off::Consensus { weaken, lying_disks } => {
                let (weaken, lying_disks) = (*weaken, *lying_disks);
                consensus(Setup { weaken, lying_disks, ..Setup::new(seed, CONSENSUS_STEPS) })
            }
        };
        let counts = |violation: &String| {
            self.checks.is_empty() || self.checks.iter().any(|check| violation.contains(check))
        };
        played.err().filter(counts)
    }
}
