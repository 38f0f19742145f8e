//! A cache against origins that misbehave, over loopback.

#![allow(clippy::unwrap_used, reason = "tests")]

mod artifacts;
mod bucket;
mod disk;
mod faults;
mod files;
mod nginx;
mod overload;
mod support;
