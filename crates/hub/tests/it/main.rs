//! The hub as its users meet it: over real sockets and real mutual TLS.

#![allow(clippy::unwrap_used, clippy::needless_pass_by_value)]

mod authority;
mod fleet;
mod fleet_only;
mod joining;
mod kill;
mod limits;
mod repository;
mod restart;
mod roles;
mod support;
