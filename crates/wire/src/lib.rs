//! Messages between Cohort's processes, and the transport below them.
//!
//! **What it is.** It carries requests between peers whose identity is verified, within limits, and
//! turns every failure into an error that can be shown.
//!
//! **What it must never know.** What a message means.
//!
//! **Where to start reading.** [`http::Client`] and [`http::serve`]; [`frame`] is the transport of
//! Raft, [`kill`] the kill switch. [`limits`] names every limit and says why.

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
