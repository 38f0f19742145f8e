//! What a transfer tells the group's operators.

use cohort_core::ids::ServerId;

/// A decision that a report led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Many servers fell behind, so each gets fewer children.
    FanOutLowered { from: usize },
    /// A server cannot keep up and moves to the tail.
    Slow {
        server: ServerId,
        /// What it receives, in bytes per second.
        rate: u64,
    },
    /// A server gets nothing from its parent, and gets another one.
    Starved { server: ServerId, parent: ServerId },
    /// A slow server keeps up under another parent: the first one was to blame.
    Acquitted {
        server: ServerId,
        /// The parent under which it was slow.
        suspect: ServerId,
    },
    /// A head gets nothing of its lease, which goes to another.
    LeaseRevoked { server: ServerId },
    /// Several servers got nothing or wrong bytes from this one: it feeds nobody any more.
    Barred { server: ServerId },
}
