//! The built-in certificate authority, for those who bring none.
//!
//! Two files in a folder: `ca.pem` (the certificate, public) and `ca-key.pem` (0600).

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::durable::{write_durable, write_durable_secret};
use crate::identity::{Identity, IdentityError, read_small};
use crate::peer::{Peer, Role};
use crate::request::{IdentityRequest, PublicKey};
use crate::sha256_hex;

/// How long a certificate lives, in days. Everything that runs must live at least 30 days without
/// the hub. Renewal begins when a third of the life is left, so 400 days leave 133 even to a server
/// whose hub vanishes just before it would have renewed; and a yearly habit of renewing by hand
/// fits in as well.
pub const LIFETIME_DAYS: u64 = 400;

/// Ten years: replacing an authority means touching every server.
const AUTHORITY_LIFETIME_DAYS: u64 = 3653;

/// Certificates are good from a day before they are made, because clocks of new servers are behind
/// until they have found a time server.
const BACKDATED_DAYS: u64 = 1;

const DAY_S: u64 = 24 * 60 * 60;
const CERT_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca-key.pem";

/// How long certificates of a role live by default.
#[must_use]
pub fn lifetime_of(role: Role) -> Duration {
    match role {
        Role::Viewer | Role::Operator | Role::Publisher | Role::Agent | Role::Hub => {
            Duration::from_secs(LIFETIME_DAYS * DAY_S)
        }
    }
}

/// A certificate authority whose key is at hand.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
}

impl Authority {
    /// Makes a new authority in a folder, which is made when it is missing.
    ///
    /// # Errors
    /// [`AuthorityError::Exists`] when the folder has one already: replacing it would cut off
    /// every server. Else whatever the file system says.
    pub fn create(dir: &Path, now: UnixTime) -> Result<Self, AuthorityError> {
        fs::create_dir_all(dir).map_err(|error| AuthorityError::file(dir, error))?;
        let (cert_path, key_path) = (dir.join(CERT_FILE), dir.join(KEY_FILE));
        if cert_path.exists() {
            return Err(AuthorityError::Exists { dir: dir.display().to_string() });
        }
        let key = KeyPair::generate().map_err(AuthorityError::Make)?;
        let mut params = authority_params(&key);
        set_life(&mut params, now, Duration::from_secs(AUTHORITY_LIFETIME_DAYS * DAY_S));
        let certificate_pem = params.self_signed(&key).map_err(AuthorityError::Make)?.pem();
        // The certificate is written last: whoever sees it knows that the key is there.
        write_durable_secret(&key_path, key.serialize_pem().as_bytes())
            .map_err(|error| AuthorityError::file(&key_path, error))?;
        write_durable(&cert_path, certificate_pem.as_bytes())
            .map_err(|error| AuthorityError::file(&cert_path, error))?;
        Self::open(dir)
    }

    /// Opens the authority in a folder.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the key is not the certificate's.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let (cert_path, key_path) = (dir.join(CERT_FILE), dir.join(KEY_FILE));
        let certificate_pem =
            read_small(&cert_path).map_err(|error| AuthorityError::file(&cert_path, error))?;
        let key_pem =
            read_small(&key_path).map_err(|error| AuthorityError::file(&key_path, error))?;
        let damaged = |path: &Path, reason: String| AuthorityError::Damaged {
            path: path.display().to_string(),
            reason,
        };
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|error| damaged(&cert_path, error.to_string()))?;
        let key =
            KeyPair::from_pem(&key_pem).map_err(|error| damaged(&key_path, error.to_string()))?;
        let read = webpki::EndEntityCert::try_from(&certificate)
            .map_err(|error| damaged(&cert_path, error.to_string()))?;
        if read.subject_public_key_info().as_ref() != key.subject_public_key_info() {
            return Err(damaged(&key_path, "the key does not belong to ca.pem".to_owned()));
        }
        let issuer = Issuer::new(authority_params(&key), key);
        Ok(Self { issuer, certificate, certificate_pem })
    }

    /// The authority's certificate, in PEM: what everybody trusts.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The authority's certificate.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of the authority's certificate (DER), in hexadecimal: what a join token carries.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        sha256_hex(&self.certificate)
    }

    /// Issues a certificate for `peer` over the request's key, in PEM.
    ///
    /// Whether the asker may be `peer` is the caller's to know: by a join token, or by the old
    /// certificate ([`Authority::renew`]).
    ///
    /// # Errors
    /// [`AuthorityError::WrongPeer`] when the request asks for somebody else.
    pub fn issue(
        &self,
        request: &IdentityRequest,
        peer: &Peer,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<String, AuthorityError> {
        if request.peer() != peer {
            return Err(AuthorityError::WrongPeer {
                asked: Box::new(request.peer().clone()),
                allowed: Box::new(peer.clone()),
            });
        }
        self.certify(request.public_key(), peer, lifetime, now)
    }

    /// Issues a new certificate to somebody who authenticated with the old one.
    ///
    /// # Errors
    /// [`AuthorityError::WrongPeer`] when the request asks for another name or role.
    pub fn renew(
        &self,
        request: &IdentityRequest,
        authenticated: &Peer,
        now: UnixTime,
    ) -> Result<String, AuthorityError> {
        self.issue(request, authenticated, lifetime_of(authenticated.role), now)
    }

    /// Makes a whole identity on this machine: for `cohort init`, which makes those of the hub and
    /// of the first operator, and for tests.
    ///
    /// # Errors
    /// When a key cannot be made.
    pub fn make_identity(
        &self,
        peer: &Peer,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<Identity, AuthorityError> {
        let pair = KeyPair::generate().map_err(AuthorityError::Make)?;
        let key = PublicKey::from_info(pair.subject_public_key_info())
            .expect("the default kind of key is P-256");
        let chain = self.certify(&key, peer, lifetime, now)?;
        Identity::from_pem(&chain, &pair.serialize_pem(), &self.certificate_pem)
            .map_err(|error| AuthorityError::Unusable(Box::new(error)))
    }

    fn certify(
        &self,
        key: &PublicKey,
        peer: &Peer,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<String, AuthorityError> {
        let mut params =
            CertificateParams::new(vec![peer.dns_name()]).map_err(AuthorityError::Make)?;
        params.distinguished_name = named(&peer.dns_name());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Every part both serves and asks.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(random_serial()?);
        set_life(&mut params, now, lifetime);
        Ok(params.signed_by(key, &self.issuer).map_err(AuthorityError::Make)?.pem())
    }
}

/// What the authority's own certificate says, derived from its key alone, so that opening it needs
/// no parser for certificates.
fn authority_params(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mark = sha256_hex(&key.subject_public_key_info());
    params.distinguished_name = named(&format!("cohort authority {}", &mark[..16]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn set_life(params: &mut CertificateParams, now: UnixTime, lifetime: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let from = now.as_secs().saturating_sub(BACKDATED_DAYS * DAY_S);
    params.not_before = epoch + Duration::from_secs(from);
    params.not_after = epoch + Duration::from_secs(now.as_secs()) + lifetime;
}

fn random_serial() -> Result<SerialNumber, AuthorityError> {
    let mut bytes = [0_u8; 16];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| AuthorityError::Randomness)?;
    // A serial number is positive: the first bit stays clear, the next keeps its length.
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// Why the authority cannot do it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AuthorityError {
    /// There is one already.
    #[error("folder {dir} has an authority already; every certificate in use depends on it")]
    Exists {
        /// The folder.
        dir: String,
    },
    /// A file cannot be read or written.
    #[error("authority's file {path} cannot be read or written")]
    File {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not what it should be.
    #[error("authority's file {path} is damaged: {reason}")]
    Damaged {
        /// The file.
        path: String,
        /// Why.
        reason: String,
    },
    /// Asked for somebody else.
    #[error("request is for {asked}, but its sender may only be {allowed}")]
    WrongPeer {
        /// Who the request names.
        asked: Box<Peer>,
        /// Who the sender is.
        allowed: Box<Peer>,
    },
    /// A key or certificate cannot be made.
    #[error("key or certificate cannot be made")]
    Make(#[source] rcgen::Error),
    /// What was made cannot be used.
    #[error("new identity cannot be used")]
    Unusable(#[source] Box<IdentityError>),
    /// No randomness.
    #[error("operating system gives no randomness")]
    Randomness,
}

impl AuthorityError {
    fn file(path: &Path, source: io::Error) -> Self {
        Self::File { path: path.display().to_string(), source }
    }
}
