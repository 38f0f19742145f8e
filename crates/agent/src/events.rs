//! Log lines that tests and benchmarks wait for, by name.

/// An app's state changed; fields `app`, `from`, `to`, `by`.
pub const STATE: &str = "state";
/// The member's role, term or leader changed; fields `role`, `term`, `leader`.
pub const ROLE: &str = "raft role";
/// The member leads and has committed in its term; field `term`.
pub const LEADS: &str = "leads the group";
/// The member began to hand leadership over.
pub const GIVES_AWAY: &str = "leadership is given away";
