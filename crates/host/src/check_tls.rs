//! TLS of checks: the service proves who it is, to this server itself.

use std::sync::{Arc, OnceLock};

use cohort_base::chain;
use cohort_core::policy::TlsProbe;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use tokio_rustls::TlsConnector;

use crate::check::{CheckFailure, Stream};

/// The name that a service's certificate is for, unless the check says another one.
const NAME: &str = "localhost";

/// Speaks TLS over a connection; `protocol` is what it is for, as ALPN names it.
pub(crate) async fn wrap(
    stream: Stream,
    probe: &TlsProbe,
    protocol: Option<&str>,
) -> Result<Stream, CheckFailure> {
    let cannot = |why: String| CheckFailure::CannotCheck(why);
    let name = probe.server_name.as_deref().unwrap_or(NAME);
    let name = ServerName::try_from(name.to_owned()).map_err(|error| cannot(chain(&error)))?;
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| cannot(chain(&error)))?;
    let mut config = if probe.insecure {
        let any = Arc::new(AnyCertificate { provider });
        builder.dangerous().with_custom_certificate_verifier(any).with_no_client_auth()
    } else {
        builder.with_root_certificates(roots(probe)?).with_no_client_auth()
    };
    config.alpn_protocols = protocol.iter().map(|name| name.as_bytes().to_vec()).collect();
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    match connected {
        Ok(stream) => Ok(Box::new(stream)),
        // What TLS itself says is in the error of the connection.
        Err(error) if matches!(said(&error), Some(Error::InvalidMessage(_))) => {
            Err(CheckFailure::NotTrusted("the service does not speak it".to_owned()))
        }
        Err(error) if said(&error).is_some() => Err(CheckFailure::NotTrusted(chain(&error))),
        Err(error) => Err(CheckFailure::from_io(&error)),
    }
}

fn said(error: &std::io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

/// What the check trusts: its own authority, or what this server's system trusts.
fn roots(probe: &TlsProbe) -> Result<Arc<RootCertStore>, CheckFailure> {
    static OF_SYSTEM: OnceLock<Arc<RootCertStore>> = OnceLock::new();
    let Some(ca) = &probe.ca else {
        let of_system = OF_SYSTEM.get_or_init(|| {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            Arc::new(roots)
        });
        return Ok(Arc::clone(of_system));
    };
    let unusable = |error: String| CheckFailure::CannotCheck(format!("the check's ca: {error}"));
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca.as_bytes()) {
        let certificate = certificate.map_err(|error| unusable(chain(&error)))?;
        roots.add(certificate).map_err(|error| unusable(chain(&error)))?;
    }
    if roots.is_empty() {
        return Err(unusable("no certificate in it".to_owned()));
    }
    Ok(Arc::new(roots))
}

/// For a check whose policy says that any certificate will do.
#[derive(Debug)]
struct AnyCertificate {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
