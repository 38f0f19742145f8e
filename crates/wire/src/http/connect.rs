//! Connecting: TCP, then TLS, with an error for each way to fail.

use std::collections::BTreeMap;
use std::error::Error;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cohort_base::{Cause, chain};
use cohort_identity::{Alpn, Identity, certified_by, client_config, joining_client_config};
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::client::Target;
use super::error::CallError;
use crate::dscp::Dscp;
use crate::limits::CONNECT_TIMEOUT;
use crate::tls::{ClientStream, IdentitySlot, bound_window, tune};

/// How a client authenticates itself and verifies servers.
pub(super) enum Credentials {
    /// By certificates of the same authority.
    Identity(Arc<IdentitySlot>),
    /// Joining: no certificate yet, only the fingerprint of the hub's authority.
    Fingerprint(String),
}

type Prepared = (Option<Arc<Identity>>, Arc<rustls::ClientConfig>);

/// Opens connections. TLS configurations are cached per protocol until the identity is replaced.
pub(super) struct Connector {
    credentials: Credentials,
    prepared: Mutex<BTreeMap<Alpn, Prepared>>,
    /// For connections that carry artifacts.
    dscp_bulk: Mutex<Dscp>,
    /// The revocations for which open connections were judged.
    judged: AtomicU64,
}

impl Connector {
    pub(super) fn new(credentials: Credentials) -> Self {
        let (prepared, dscp_bulk) = (Mutex::default(), Mutex::default());
        Self { credentials, prepared, dscp_bulk, judged: AtomicU64::new(0) }
    }

    pub(super) fn mark_bulk(&self, dscp: Dscp) {
        *self.dscp_bulk.lock() = dscp;
    }

    pub(super) async fn connect(&self, target: &Target) -> Result<ClientStream, CallError> {
        let address = || target.address.clone();
        let unreachable = |source| CallError::Unreachable { address: address(), source };
        let config = self
            .config(target.alpn)
            .map_err(|source| CallError::Request { address: address(), source })?;
        let stream = within(target, "connecting", TcpStream::connect(&target.address))
            .await?
            .map_err(|source| match source.kind() {
                io::ErrorKind::ConnectionRefused => CallError::Refused { address: address() },
                _ => unreachable(source),
            })?;
        tune(&stream).map_err(unreachable)?;
        if target.alpn == Alpn::Bulk {
            let dscp = *self.dscp_bulk.lock();
            dscp.try_mark(&stream);
            bound_window(&stream).map_err(unreachable)?;
        }
        let handshake = TlsConnector::from(config).connect(target.peer.server_name(), stream);
        let stream = within(target, "shaking hands", handshake)
            .await?
            .map_err(|error| refused(target, &error).unwrap_or_else(|| unreachable(error)))?;
        if stream.get_ref().1.alpn_protocol() != Some(target.alpn.as_bytes()) {
            return Err(CallError::Identity {
                address: address(),
                expected: Box::new(target.peer.clone()),
                source: format!("it does not support {}", target.alpn).into(),
            });
        }
        self.check_revoked(target, &stream)?;
        Ok(stream)
    }

    /// Whether there are revocations for which open connections were not judged yet.
    pub(super) fn has_to_judge(&self) -> bool {
        let Credentials::Identity(slot) = &self.credentials else { return false };
        let known = slot.revocations().digest();
        self.judged.swap(known, Ordering::Relaxed) != known
    }

    /// A server whose key was stolen is no server.
    fn check_revoked(&self, target: &Target, stream: &ClientStream) -> Result<(), CallError> {
        let Credentials::Identity(slot) = &self.credentials else { return Ok(()) };
        let certified = stream.get_ref().1.peer_certificates().map(certified_by);
        match certified {
            Some(Ok(certified)) if !slot.revocations().revokes(&certified) => Ok(()),
            Some(_) | None => Err(CallError::Identity {
                address: target.address.clone(),
                expected: Box::new(target.peer.clone()),
                source: "its certificate is revoked".into(),
            }),
        }
    }

    fn config(&self, alpn: Alpn) -> Result<Arc<rustls::ClientConfig>, Cause> {
        let identity = match &self.credentials {
            Credentials::Identity(slot) => Some(slot.current()),
            Credentials::Fingerprint(_) => None,
        };
        let mut prepared = self.prepared.lock();
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
                return Err(format!("{alpn} needs a certificate").into());
            }
            (Credentials::Identity(slot), _) => client_config(&slot.current(), alpn),
        };
        let config = made?;
        prepared.insert(alpn, (identity, Arc::clone(&config)));
        Ok(config)
    }
}

/// [`CallError::Identity`] if one side rejected the other in TLS. In TLS 1.3, a server rejects a
/// client's certificate after the handshake, so the error may come with the first read.
pub(super) fn refused(target: &Target, error: &(dyn Error + 'static)) -> Option<CallError> {
    let tls = chain::causes(error).find_map(|cause| {
        cause.downcast_ref::<rustls::Error>().or_else(|| {
            let inner = cause.downcast_ref::<io::Error>()?.get_ref()?;
            inner.downcast_ref::<rustls::Error>()
        })
    })?;
    Some(CallError::Identity {
        address: target.address.clone(),
        expected: Box::new(target.peer.clone()),
        source: tls.clone().into(),
    })
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
