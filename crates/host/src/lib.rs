//! Everything that touches a server: unpacking, switching, hooks, services, checks, traffic.
//!
//! **What it is.** The hands of the step logic: `cohort_core::steps::next_action` decides, and
//! [`AppHost::act`] acts. Every step is recorded before it starts, and its outcome before it is
//! reported, so a crash at any instruction loses nothing.
//!
//! **What it must never know.** The group, its log and its leader; where bytes come from; what a
//! signature is. It receives complete, verified artifacts, and orders that were already judged.
//!
//! **Where to start reading.** [`AppHost`], then `run_step` (what each step does), then [`guard`]
//! (which owns the services while the agent restarts), then `unpack` (how an archive is confined to
//! its directory).

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod app_host;
mod boot;
mod boot_epoch;
mod cgroup;
mod check;
mod check_exec;
mod check_grpc;
mod check_http;
mod check_tcp;
mod check_tls;
mod clock;
pub mod confine;
#[cfg(feature = "testing")]
pub mod fuzzing;
pub mod guard;
mod health;
mod hooks;
mod inside;
mod interrupt;
mod isolation;
mod judge;
mod lacking;
mod launch;
mod not_started;
mod orphan;
mod output;
mod own_env;
mod own_files;
mod own_values;
mod port;
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
mod trusted_folder;
mod undo;
mod unpack;

pub use app_host::{Acted, AppHost, AppHostConfig, Controls};
pub use boot::Boot;
pub use boot_epoch::{next_boot_epoch, pass_boot_epoch};
pub use cgroup::{Cgroups, Controller, Limits, Usage};
pub use check::{CheckContext, Look, look_once};
pub use check_exec::HostProgram;
pub use clock::boot_time_ms;
pub use health::RunningChecks;
pub use hooks::Hook;
pub use isolation::{Isolation, ProtectSystem};
pub use judge::judge_release;
pub use lacking::{Lack, lacking};
pub use launch::Launch;
pub use own_env::OwnEnvError;
pub use own_values::OwnValues;
pub use port::take_port;
pub use preflight::NotYet;
pub use process::{Exit, StopSignal};
pub use program::{Programs, RunAs};
pub use record::HostError;
pub use service::{
    RunService, ServiceCommand, ServiceControl, ServiceError, ServiceSpec, ServiceState,
    ServiceStatus, ServiceType,
};
pub use systemd::Systemd;
pub use traffic::Traffic;
pub use trusted_folder::{UntrustedFolder, check_trusted, own_user};

#[cfg(test)]
mod activation_test;
#[cfg(test)]
mod crash_test;
#[cfg(test)]
mod testing;
