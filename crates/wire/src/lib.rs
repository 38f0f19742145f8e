//! How the parts of Cohort talk: messages, and the transport below them.
//!
//! What it must never know: what a message means. It carries requests between peers whose identity
//! is verified, within limits, and turns every failure into one that can be shown.
//!
//! Start reading at [`http::Client`] and [`http::serve`]; [`frame`] is the transport of Raft, and
//! [`kill`] the register of the kill switch. [`limits`] names every limit and says why.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

pub mod agent;
pub mod dscp;
pub mod frame;
pub mod http;
pub mod hub;
pub mod kill;
pub mod limits;
mod piecewise;
pub mod tls;
