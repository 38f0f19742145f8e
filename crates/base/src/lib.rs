//! The foundation: small mechanisms that every crate needs and that should exist only once.
//!
//! **What it is.** [`chain()`] prints an error with its causes, [`OnPath`] adds the file to an I/O
//! error, [`figures`] prints sizes, rates and durations, [`durable`] replaces a file so that a
//! crash leaves either the old or the new one, [`disk`] reserves space and locks, [`retry`] says
//! how long to wait between tries, [`metrics`] registers and renders metrics,
//! [`archive`] judges the entries of an artifact.
//!
//! **What it must never know.** Any other crate of the workspace; the network; what a server,
//! group, release or rollout is. It starts no threads, never sleeps and logs nothing.
//!
//! **Where to start reading.** The module you need; they do not depend on one another.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

pub mod archive;
pub mod chain;
pub mod disk;
pub mod durable;
pub mod events;
pub mod figures;
mod file_error;
#[cfg(feature = "testing")]
#[allow(clippy::disallowed_methods, clippy::expect_used, reason = "tests read golden files")]
pub mod golden;
pub mod metrics;
pub mod retry;
pub mod text;

pub use chain::chain;
pub use file_error::{FileError, OnPath};

/// A cause of any type, for an error's `#[source]`; can also be made from a text.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;
