//! What touches a server: unpacking, switching, hooks, services, checks, and signals for traffic.
//!
//! **What it is.** The hands of the step logic: `cohort_core::steps::next_action` decides, and
//! [`AppHost::act`] does. Whatever is begun is written down first, and whatever came of it is
//! written down before anybody hears of it, so that a crash at any instruction loses nothing.
//!
//! **What it must never know.** The group, its log, and who leads; where bytes come from; what a
//! signature is. It gets whole, verified artifacts and orders that were already judged.
//!
//! **Where to start reading.** [`AppHost`], then `run_step` (what each step does), then
//! [`guard`] (who owns the services while the agent restarts), then `unpack` (how an archive is
//! kept in its folder).

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod app_host;
mod check;
mod check_http;
mod clock;
pub mod guard;
mod health;
mod hooks;
mod orphan;
mod output;
mod preflight;
mod process;
mod program;
mod record;
mod releases;
mod run_service;
mod run_step;
mod service;
mod service_file;
mod systemd;
mod traffic;
mod tree;
mod undo;
mod unpack;

pub use app_host::{Acted, AppHost, AppHostConfig, Contact, Controls};
pub use check::{CheckContext, CheckFailure, check_name, look};
pub use clock::{boot_id, boot_time_ms};
pub use health::RunningChecks;
pub use hooks::Hook;
pub use program::RunAs;
pub use record::{HostError, next_boot_epoch};
pub use releases::{Releases, ReleasesError};
pub use service::{
    RunService, ServiceCommand, ServiceControl, ServiceError, ServiceSpec, ServiceState,
    ServiceStatus,
};
pub use service_file::{Hooks, Protocols, Service, ServiceFile, ServiceFileError};
pub use systemd::Systemd;
pub use traffic::Traffic;
pub use unpack::{UnpackError, UnpackLimits};

/// Locks; what a panic in another thread left behind is used as it is.
pub(crate) fn lock<T>(mutex: &std::sync::Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

#[cfg(test)]
mod activation_test;
#[cfg(test)]
mod crash_test;
#[cfg(test)]
mod testing;
