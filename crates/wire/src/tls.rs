//! The current identity, and socket options.

use std::io;
use std::sync::Arc;

use cohort_identity::{Alpn, Certified, Identity, Live, TlsError, hub_reader_config};
use parking_lot::RwLock;
use rustix::net::sockopt;
use tokio::net::TcpStream;

use crate::limits::{
    BULK_WINDOW_BYTES, TCP_KEEPALIVE_IDLE, TCP_KEEPALIVE_INTERVAL, TCP_KEEPALIVE_PROBES,
    TCP_USER_TIMEOUT_MS,
};
use crate::revocation::Revocations;

/// The client's end of a TLS connection.
pub type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;
/// The server's end of a TLS connection.
pub type ServerStream = tokio_rustls::server::TlsStream<TcpStream>;

/// The current identity. Renewal replaces it at run time: new connections use the new identity,
/// existing ones stay open.
#[derive(Debug)]
pub struct IdentitySlot {
    current: RwLock<Arc<Identity>>,
    /// Whose certificates are refused, although they are valid.
    revocations: Arc<Revocations>,
}

impl IdentitySlot {
    /// A slot with its first identity, of a process that asks nobody for revocations.
    #[must_use]
    pub fn new(identity: Identity) -> Arc<Self> {
        IdentitySlot::refusing(identity, Arc::default())
    }

    /// A slot with its first identity, which refuses those whose certificates are revoked.
    #[must_use]
    pub fn refusing(identity: Identity, revocations: Arc<Revocations>) -> Arc<Self> {
        Arc::new(Self { current: RwLock::new(Arc::new(identity)), revocations })
    }

    /// The revocations that this process knows.
    #[must_use]
    pub fn revocations(&self) -> &Arc<Revocations> {
        &self.revocations
    }

    /// The identity for a new connection.
    #[must_use]
    pub fn current(&self) -> Arc<Identity> {
        Arc::clone(&self.current.read())
    }

    /// Replaces the identity, after renewal.
    pub fn replace(&self, identity: Identity) {
        *self.current.write() = Arc::new(identity);
    }
}

impl Live for IdentitySlot {
    fn identity(&self) -> Arc<Identity> {
        self.current()
    }

    fn refuses(&self, certified: &Certified) -> bool {
        self.revocations.revokes(certified)
    }
}

/// TLS for reading the repository from hubs whose `repository_access` is `fleet`.
///
/// # Errors
/// As [`hub_reader_config`].
pub fn repository_reader(slot: &Arc<IdentitySlot>) -> Result<rustls::ClientConfig, TlsError> {
    hub_reader_config(Arc::clone(slot) as Arc<dyn Live>, Alpn::Bulk)
}

/// Sends small messages immediately, and has the kernel detect peers that vanished or stopped
/// reading.
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

/// Bounds the bytes in flight on a bulk connection, so that they do not fill a network card's
/// queue.
pub(crate) fn bound_window(stream: &TcpStream) -> io::Result<()> {
    Ok(sockopt::set_socket_recv_buffer_size(stream, BULK_WINDOW_BYTES)?)
}
