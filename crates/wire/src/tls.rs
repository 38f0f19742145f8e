//! The identity that a part uses right now, and the settings of its sockets.

use std::io;
use std::sync::{Arc, PoisonError, RwLock};

use cohort_identity::Identity;
use rustix::net::sockopt;
use tokio::net::TcpStream;

use crate::limits::{
    BULK_WINDOW_BYTES, TCP_KEEPALIVE_IDLE, TCP_KEEPALIVE_INTERVAL, TCP_KEEPALIVE_PROBES,
    TCP_USER_TIMEOUT_MS,
};

/// A TLS stream of a client.
pub type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;
/// A TLS stream of a server.
pub type ServerStream = tokio_rustls::server::TlsStream<TcpStream>;

/// Holds the identity in use. Renewal replaces it while everything runs: new connections use the
/// new one, old connections go on.
#[derive(Debug)]
pub struct IdentitySlot {
    current: RwLock<Arc<Identity>>,
}

impl IdentitySlot {
    /// A slot that holds an identity.
    #[must_use]
    pub fn new(identity: Identity) -> Arc<Self> {
        Arc::new(Self { current: RwLock::new(Arc::new(identity)) })
    }

    /// The identity in use.
    #[must_use]
    pub fn current(&self) -> Arc<Identity> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the identity.
    pub fn replace(&self, identity: Identity) {
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(identity);
    }
}

/// Sets up a socket of ours: no delay for small messages, and a peer that vanished, or that does
/// not read, is noticed by the kernel.
pub(crate) fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, TCP_KEEPALIVE_IDLE)?;
    sockopt::set_tcp_keepintvl(stream, TCP_KEEPALIVE_INTERVAL)?;
    sockopt::set_tcp_keepcnt(stream, TCP_KEEPALIVE_PROBES)?;
    #[cfg(target_os = "linux")]
    sockopt::set_tcp_user_timeout(stream, TCP_USER_TIMEOUT_MS)?;
    Ok(())
}

/// Bounds what the other side of a bulk connection may have under way, so that it stays short of
/// filling the queue of a network card.
pub(crate) fn bound_window(stream: &TcpStream) -> io::Result<()> {
    Ok(sockopt::set_socket_recv_buffer_size(stream, BULK_WINDOW_BYTES)?)
}
