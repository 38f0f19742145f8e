//! The daemon on every server: runner and member wired together.

pub mod config;
