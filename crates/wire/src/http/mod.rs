//! HTTP/1.1 over mutual TLS: [`Client`], [`serve`], and the errors they share.

mod caller;
mod client;
mod connect;
mod error;
mod gate;
mod pool;
mod routes;
mod server;
mod shares;
mod tally;

#[cfg(test)]
mod client_test;
#[cfg(test)]
mod marking_test;
#[cfg(test)]
mod server_test;
#[cfg(test)]
pub(crate) mod testing;

pub use caller::{ApiJson, Caller, Certificate};
pub use client::{BodyStream, Call, Client, Target};
pub use error::{ApiError, CallError};
pub use gate::Refusals;
pub use routes::{Endpoint, Endpoints, Routes, Who};
pub use server::{Handler, RawHandler, serve, serve_plain};
pub use tally::{Present, Tally};
