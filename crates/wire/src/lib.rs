//! Messages between Cohort's processes, and the transport below them.
//!
//! **What it is.** It carries requests between peers with verified identities, within limits, and
//! turns every failure into an error that can be shown.
//!
//! **What it must never know.** What a message means.
//!
//! **Where to start reading.** [`http::Client`] and [`http::serve`]; [`frame`] is the transport of
//! Raft, [`kill`] the kill switch, [`intent`]
//! what operators want of apps. [`limits`] lists every limit with its reason.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

pub mod agent;
pub mod audit;
pub mod dscp;
pub mod entry;
pub mod frame;
pub mod http;
pub mod hub;
pub mod intent;
pub mod kill;
pub mod limits;
mod piecewise;
pub mod revocation;
pub mod tls;
