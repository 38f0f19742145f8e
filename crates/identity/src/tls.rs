//! Mutual TLS: configurations for servers, clients, and clients that are joining.
//!
//! TLS 1.3 only, without session resumption: a resumed session skips the certificate, and a full
//! handshake costs well under a millisecond.

use std::fmt;
use std::slice::from_ref;
use std::sync::Arc;

use hex::FromHex as _;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WantsClientCert};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::server::{NoServerSessionStorage, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    CertificateError, ClientConfig, ConfigBuilder, DigitallySignedStruct, ServerConfig,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::identity::{CHAIN_MAX, Identity, IdentityError, provider, root_store, verify_chain};
use crate::live::Live;
use crate::peer::{Role, certified_by, sha256_hex};

/// The protocol of a connection, agreed in the TLS handshake, so that one port serves all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Alpn {
    /// Orders, reports and requests between agents, and from the command line to an agent.
    Control,
    /// Messages between members of a group.
    Raft,
    /// Artifacts between servers, which yield to other traffic.
    Bulk,
    Hub,
}

impl Alpn {
    pub const ALL: [Alpn; 4] = [Alpn::Control, Alpn::Raft, Alpn::Bulk, Alpn::Hub];

    /// The protocol id on the wire.
    #[must_use]
    pub fn as_bytes(self) -> &'static [u8] {
        match self {
            Alpn::Control => b"cohort-control/1",
            Alpn::Raft => b"cohort-raft/1",
            Alpn::Bulk => b"cohort-bulk/1",
            Alpn::Hub => b"cohort-hub/1",
        }
    }

    /// The protocol with this id; `None` for an unknown one.
    #[must_use]
    pub fn from_bytes(id: &[u8]) -> Option<Self> {
        Alpn::ALL.into_iter().find(|alpn| alpn.as_bytes() == id)
    }
}

impl fmt::Display for Alpn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&String::from_utf8_lossy(self.as_bytes()))
    }
}

/// Whether a server accepts clients without a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAuth {
    Required,
    /// A client may show no certificate and is then anonymous; a bad certificate is refused. Only
    /// for the hub, whose joining clients have none yet.
    Optional,
}

/// The TLS configuration of a server.
///
/// # Errors
/// When the identity's authorities or key cannot be used.
pub fn server_config(
    identity: &Identity,
    alpns: &[Alpn],
    client_auth: ClientAuth,
) -> Result<Arc<ServerConfig>, TlsError> {
    let provider = provider();
    let roots = Arc::new(root_store(identity.roots()).map_err(TlsError::Roots)?);
    let verifier = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider));
    let verifier = match client_auth {
        ClientAuth::Required => verifier,
        ClientAuth::Optional => verifier.allow_unauthenticated(),
    };
    let verifier = verifier.build().map_err(TlsError::Verifier)?;
    let mut chain = identity.chain().to_vec();
    if client_auth == ClientAuth::Optional {
        // A joining client knows the authority only by fingerprint and must see its certificate.
        let missing: Vec<_> =
            identity.roots().iter().filter(|root| !chain.contains(root)).cloned().collect();
        chain.extend(missing);
    }
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, identity.key().clone_key())
        .map_err(TlsError::Config)?;
    config.alpn_protocols = alpns.iter().map(|alpn| alpn.as_bytes().to_vec()).collect();
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// The TLS configuration of a client. The expected server is given per connection, by
/// [`crate::Peer::server_name`].
///
/// # Errors
/// When the identity's authorities or key cannot be used.
pub fn client_config(identity: &Identity, alpn: Alpn) -> Result<Arc<ClientConfig>, TlsError> {
    let roots = root_store(identity.roots()).map_err(TlsError::Roots)?;
    let config = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .with_root_certificates(roots)
        .with_client_auth_cert(identity.chain().to_vec(), identity.key().clone_key())
        .map_err(TlsError::Config)?;
    Ok(Arc::new(finish_client(config, alpn)))
}

/// The TLS configuration of a client that has no certificate yet and knows the hub only by its
/// authority's fingerprint. It accepts any hub certificate that leads to that authority, whatever
/// name was dialled.
///
/// # Errors
/// When the fingerprint is not 64 hexadecimal digits.
pub fn joining_client_config(fingerprint: &str) -> Result<Arc<ClientConfig>, TlsError> {
    <[u8; 32]>::from_hex(fingerprint).map_err(TlsError::Fingerprint)?;
    let config = hub_client(HubTrust::Fingerprint(fingerprint.to_owned()))?.with_no_client_auth();
    Ok(Arc::new(finish_client(config, Alpn::Hub)))
}

/// A client that talks to hubs, whatever name was dialled.
pub(crate) fn hub_client(
    trust: HubTrust,
) -> Result<ConfigBuilder<ClientConfig, WantsClientCert>, TlsError> {
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    Ok(ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(HubVerifier { trust, algorithms })))
}

pub(crate) fn finish_client(mut config: ClientConfig, alpn: Alpn) -> ClientConfig {
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    config.resumption = Resumption::disabled();
    config
}

/// Whose hubs a client trusts.
#[derive(Debug)]
pub(crate) enum HubTrust {
    /// Those of the authority with this fingerprint: all that a joiner knows.
    Fingerprint(String),
    /// Those of the authorities of the moment, if they are not revoked.
    Live(Arc<dyn Live>),
}

/// Accepts certificates of hubs only.
#[derive(Debug)]
struct HubVerifier {
    trust: HubTrust,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for HubVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let refused = |error: CertificateError| rustls::Error::InvalidCertificate(error);
        if intermediates.len() > CHAIN_MAX {
            return Err(refused(CertificateError::BadEncoding));
        }
        let mut chain = vec![end_entity.clone()];
        chain.extend_from_slice(intermediates);
        let verify = |roots: &[CertificateDer<'_>]| {
            verify_chain(&chain, roots, now, webpki::KeyUsage::server_auth())
                .map_err(|error| refused(certificate_error(&error)))
        };
        match &self.trust {
            HubTrust::Fingerprint(fingerprint) => {
                // Never the leaf itself: an authority does not serve.
                let root = intermediates.iter().find(|it| sha256_hex(it) == *fingerprint);
                verify(from_ref(root.ok_or_else(|| refused(CertificateError::UnknownIssuer))?))?;
            }
            HubTrust::Live(live) => verify(live.identity().roots())?,
        }
        let wrong = |_| refused(CertificateError::NotValidForName);
        let certified = certified_by(&chain).map_err(wrong)?;
        match &self.trust {
            _ if certified.peer.role != Role::Hub => {
                Err(refused(CertificateError::NotValidForName))
            }
            HubTrust::Live(live) if live.refuses(&certified) => {
                Err(refused(CertificateError::Revoked))
            }
            HubTrust::Live(_) | HubTrust::Fingerprint(_) => Ok(ServerCertVerified::assertion()),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("only TLS 1.3 is supported".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn certificate_error(error: &webpki::Error) -> CertificateError {
    match error {
        webpki::Error::BadDer => CertificateError::BadEncoding,
        webpki::Error::CertExpired { .. } => CertificateError::Expired,
        webpki::Error::CertNotValidYet { .. } => CertificateError::NotValidYet,
        webpki::Error::InvalidSignatureForPublicKey => CertificateError::BadSignature,
        _ => CertificateError::UnknownIssuer,
    }
}

/// Why no TLS configuration could be made.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("authorities cannot be used for TLS")]
    Roots(#[source] IdentityError),
    #[error("cannot build the verifier of client certificates")]
    Verifier(#[source] VerifierBuilderError),
    #[error("identity cannot be used for TLS")]
    Config(#[source] rustls::Error),
    #[error("authority's fingerprint is not 64 hexadecimal digits")]
    Fingerprint(#[source] hex::FromHexError),
}
