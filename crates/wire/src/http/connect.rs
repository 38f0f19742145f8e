//! Making a connection: TCP, then TLS, each failure told apart.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cohort_identity::{Alpn, Identity, client_config, joining_client_config};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::client::Target;
use super::error::CallError;
use crate::dscp::Dscp;
use crate::limits::CONNECT_TIMEOUT;
use crate::tls::{ClientStream, IdentitySlot, bound_window, tune};

/// By what a client is known, and by what it knows others.
pub(super) enum Credentials {
    /// A certificate, and expecting one of the same authority.
    Identity(Arc<IdentitySlot>),
    /// None yet: only the fingerprint of the hub's authority.
    Fingerprint(String),
}

type Prepared = (Option<Arc<Identity>>, Arc<rustls::ClientConfig>);

/// Makes connections; keeps the TLS configuration per protocol until the identity is replaced.
pub(super) struct Connector {
    credentials: Credentials,
    prepared: Mutex<BTreeMap<Alpn, Prepared>>,
    /// How packets of connections that carry artifacts are marked.
    dscp_bulk: Mutex<Dscp>,
}

impl Connector {
    pub(super) fn new(credentials: Credentials) -> Self {
        let (prepared, dscp_bulk) = (Mutex::default(), Mutex::default());
        Self { credentials, prepared, dscp_bulk }
    }

    pub(super) fn mark_bulk(&self, dscp: Dscp) {
        *self.dscp_bulk.lock().unwrap_or_else(PoisonError::into_inner) = dscp;
    }

    pub(super) async fn connect(&self, target: &Target) -> Result<ClientStream, CallError> {
        let address = || target.address.clone();
        let config = self
            .config(target.alpn)
            .map_err(|reason| CallError::Request { address: address(), reason })?;
        let stream = within(target, "connecting", TcpStream::connect(&target.address))
            .await?
            .map_err(|source| match source.kind() {
                io::ErrorKind::ConnectionRefused => CallError::Refused { address: address() },
                _ => CallError::Unreachable { address: address(), source },
            })?;
        tune(&stream).map_err(|source| CallError::Unreachable { address: address(), source })?;
        if target.alpn == Alpn::Bulk {
            let dscp = *self.dscp_bulk.lock().unwrap_or_else(PoisonError::into_inner);
            dscp.try_mark(&stream);
            bound_window(&stream)
                .map_err(|source| CallError::Unreachable { address: address(), source })?;
        }
        let handshake = TlsConnector::from(config).connect(target.peer.server_name(), stream);
        let stream = within(target, "agreeing on TLS", handshake).await?.map_err(|error| {
            refused(target, &error)
                .unwrap_or_else(|| CallError::Unreachable { address: address(), source: error })
        })?;
        if stream.get_ref().1.alpn_protocol() != Some(target.alpn.as_bytes()) {
            return Err(CallError::Identity {
                address: address(),
                expected: Box::new(target.peer.clone()),
                reason: format!("it does not speak {}", target.alpn),
            });
        }
        Ok(stream)
    }

    fn config(&self, alpn: Alpn) -> Result<Arc<rustls::ClientConfig>, String> {
        let identity = match &self.credentials {
            Credentials::Identity(slot) => Some(slot.current()),
            Credentials::Fingerprint(_) => None,
        };
        let mut prepared = self.prepared.lock().unwrap_or_else(PoisonError::into_inner);
        let same = |known: &Option<Arc<Identity>>| match (known, &identity) {
            (Some(known), Some(current)) => Arc::ptr_eq(known, current),
            (None, None) => true,
            (Some(_), None) | (None, Some(_)) => false,
        };
        if let Some((known, config)) = prepared.get(&alpn)
            && same(known)
        {
            return Ok(Arc::clone(config));
        }
        let made = match (&self.credentials, &identity) {
            (Credentials::Fingerprint(fingerprint), _) if alpn == Alpn::Hub => {
                joining_client_config(fingerprint)
            }
            (Credentials::Fingerprint(_), _) => {
                return Err(format!("without a certificate one cannot speak {alpn}"));
            }
            (Credentials::Identity(slot), _) => client_config(&slot.current(), alpn),
        };
        let config = made.map_err(|error| error.to_string())?;
        prepared.insert(alpn, (identity, Arc::clone(&config)));
        Ok(config)
    }
}

/// The error that says that one side refused the other in TLS, if this is one. In TLS 1.3 a server
/// refuses a client's certificate after the handshake, so it may come with the first read.
pub(super) fn refused(target: &Target, error: &(dyn Error + 'static)) -> Option<CallError> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let tls = error.downcast_ref::<rustls::Error>().or_else(|| {
            let inner = error.downcast_ref::<io::Error>()?.get_ref()?;
            inner.downcast_ref::<rustls::Error>()
        });
        if let Some(tls) = tls {
            return Some(CallError::Identity {
                address: target.address.clone(),
                expected: Box::new(target.peer.clone()),
                reason: tls.to_string(),
            });
        }
        cause = error.source();
    }
    None
}

async fn within<T>(
    target: &Target,
    doing: &'static str,
    work: impl Future<Output = T>,
) -> Result<T, CallError> {
    let after: Duration = CONNECT_TIMEOUT;
    timeout(after, work).await.map_err(|_| CallError::TimedOut {
        address: target.address.clone(),
        doing,
        after,
        sent: false,
    })
}
