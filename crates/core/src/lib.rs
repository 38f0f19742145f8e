//! The deployment state machine, as pure as it can be.
pub mod ids;
