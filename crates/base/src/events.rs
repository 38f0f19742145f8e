//! Log events that programs look for: benchmarks and end-to-end tests.
//!
//! A log line carries one of these in its field `event`, next to the fields listed here. The line's
//! sentence is for people and may be reworded at any time. `cargo xtask tidy` fails if one of them
//! is not logged anywhere.

/// A member's Raft role changed: `role` (`Leader`, `Follower`, …), `term`.
pub const RAFT_ROLE: &str = "raft-role";

/// The leader committed in its own term and accepts proposals: `term`.
pub const LEADER_READY: &str = "leader-ready";

/// The leader started to transfer leadership, and accepts no more proposals.
pub const LEADERSHIP_TRANSFER: &str = "leadership-transfer";

/// An app's phase changed, logged by every member that applies the entry: `app`, `from`, `to`.
pub const PHASE: &str = "phase";

/// A server may begin its change, logged by every member: `app`, `server`, `generation`.
pub const GRANTED: &str = "granted";

/// A server's agent starts a step: `app`, `step`, `attempt`.
pub const STEP_BEGIN: &str = "step-begin";

/// A server's agent finished a step: `app`, `step`, `attempt`.
pub const STEP_DONE: &str = "step-done";
