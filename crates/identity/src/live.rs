//! TLS for clients that live longer than an identity, and whose library takes one configuration for
//! good: it looks up the identity at each handshake.

use std::fmt::Debug;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::sign::CertifiedKey;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::identity::{CHAIN_MAX, Identity, provider, verify_chain};
use crate::peer::{Certified, Role, certified_by};
use crate::tls::{Alpn, TlsError, certificate_error, only_tls13};

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
    let provider = provider();
    let algorithms = provider.signature_verification_algorithms;
    let verifier = HubVerifier { live: Arc::clone(&live), algorithms };
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(TlsError::Config)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_cert_resolver(Arc::new(Current(live)));
    config.alpn_protocols = vec![alpn.as_bytes().to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
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

/// Accepts hubs of the authorities of the moment.
#[derive(Debug)]
struct HubVerifier {
    live: Arc<dyn Live>,
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
        let identity = self.live.identity();
        verify_chain(&chain, identity.roots(), now, webpki::KeyUsage::server_auth())
            .map_err(|error| refused(certificate_error(&error)))?;
        match certified_by(&chain) {
            Ok(hub) if self.live.refuses(&hub) => Err(refused(CertificateError::Revoked)),
            Ok(hub) if hub.peer.role == Role::Hub => Ok(ServerCertVerified::assertion()),
            Ok(_) | Err(_) => Err(refused(CertificateError::NotValidForName)),
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(only_tls13())
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
