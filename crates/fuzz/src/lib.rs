//! Fuzz targets: one for every decoder that reads from the network or from the disk.
//!
//! **What it is.** [`TARGETS`] names functions from bytes to nothing that panic if a property does
//! not hold: what decodes encodes to the same again, limits are kept, nothing is written outside
//! its directory, nobody's signature is forged. `tests/replay.rs` plays the corpora in `corpus`
//! through them with the other tests; `cargo xtask fuzz` searches for more.
//!
//! **What it must never know.** Which fuzzer drives it: `main.rs` alone knows that. How a decoder
//! works: a target calls what production calls, or what a crate's `fuzzing` module exposes.
//!
//! **Where to start reading.** [`TARGETS`], then `consensus.rs`: a member among hostile peers.

mod artifact;
mod configuration;
mod consensus;
mod host;
mod identity;
mod messages;
mod registry;
mod script;
mod state;
mod statement;
mod store;
mod transfer;

/// A fuzz target.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// Its name on the command line, and of its corpus.
    pub name: &'static str,
    /// Panics if a property does not hold.
    pub run: fn(&[u8]),
}

const fn target(name: &'static str, run: fn(&[u8])) -> Target {
    Target { name, run }
}

/// Every target, by name.
pub const TARGETS: &[Target] = &[
    target("archive", artifact::archive),
    target("audit", registry::audit),
    target("bundle", artifact::bundle),
    target("certificate", identity::certificate),
    target("cohort-toml", configuration::cohort_toml),
    target("config", configuration::config),
    target("delta", artifact::delta),
    target("durable-file", store::durable_file),
    target("entries", state::entries),
    target("envelope", consensus::envelope),
    target("frames", transfer::frames),
    target("host-records", host::records),
    target("identity-request", identity::request),
    target("join-token", identity::join_token),
    target("kill-file", statement::kill_file),
    target("manifest", artifact::manifest),
    target("member", consensus::member),
    target("messages", messages::messages),
    target("mirror", host::mirror),
    target("names", messages::names),
    target("policy", configuration::policy),
    target("registry", registry::transactions),
    target("registry-file", registry::file),
    target("revocations-file", statement::revocations_file),
    target("snapshot", state::snapshot),
    target("statement", statement::signed),
    target("store-file", store::file),
    target("store-records", store::records),
    target("submission", statement::submissions),
    target("subscription", transfer::subscription),
    target("tracker", transfer::tracker),
    target("unit-hashes", artifact::unit_hashes),
    target("upload", artifact::upload),
];

/// The target with this name.
#[must_use]
pub fn find(name: &str) -> Option<Target> {
    TARGETS.iter().copied().find(|target| target.name == name)
}
