//! TLS for clients that live longer than an identity, and whose library takes one configuration for
//! good: it looks up the identity at each handshake.

use std::fmt::Debug;
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, SignatureScheme};

use crate::identity::Identity;
use crate::peer::Certified;
use crate::tls::{Alpn, HubTrust, TlsError, finish_client, hub_client};

/// Who a process is at the moment, and whom it refuses.
pub trait Live: Debug + Send + Sync {
    /// The identity now.
    fn identity(&self) -> Arc<Identity>;

    /// Whether a valid certificate is refused all the same.
    fn refuses(&self, certified: &Certified) -> bool;
}

/// The configuration of a client that reads from hubs, whatever their names and addresses.
///
/// # Errors
/// When the library does not support TLS 1.3.
pub fn hub_reader_config(live: Arc<dyn Live>, alpn: Alpn) -> Result<ClientConfig, TlsError> {
    let trust = HubTrust::Live(Arc::clone(&live));
    let config = hub_client(trust)?.with_client_cert_resolver(Arc::new(Current(live)));
    Ok(finish_client(config, alpn))
}

/// Shows the certificate of the moment.
#[derive(Debug)]
struct Current(Arc<dyn Live>);

impl ResolvesClientCert for Current {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(self.0.identity().certified()))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
