//! The built-in certificate authority, for fleets without their own.
//!
//! Two files in one folder: `ca.pem` (the certificate, public) and `ca-key.pem` (mode 0600).

use std::path::{Path, PathBuf};
use std::time::Duration;

use cohort_base::{Cause, FileError, OnPath as _, durable};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::identity::{Identity, IdentityError, read_small};
use crate::peer::{Peer, group_uri, sha256_hex};
use crate::request::{IdentityRequest, PublicKey};
use crate::secret::Secret;

/// Lifetime of a certificate: 400 days. Servers must survive at least 30 days without the hub.
/// Renewal starts when a third of the lifetime is left, so even a server whose hub disappears just
/// before its renewal keeps 133 days; and renewing by hand once a year is enough.
pub const LIFETIME: Duration = Duration::from_secs(400 * DAY_S);

/// Ten years: replacing an authority means touching every server.
const AUTHORITY_LIFETIME_DAYS: u64 = 3653;

/// Certificates are valid from a day before they are issued: the clock of a new server may be
/// behind until it has found a time server.
pub const BACKDATED: Duration = Duration::from_secs(DAY_S);

const DAY_S: u64 = 24 * 60 * 60;
const CERT_FILE: &str = "ca.pem";
const KEY_FILE: &str = "ca-key.pem";

/// A certificate authority with its private key.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
}

impl Authority {
    /// Creates an authority in a folder, which is created if missing.
    ///
    /// # Errors
    /// [`AuthorityError::Exists`] when the folder has one already: replacing it would cut off
    /// every server.
    pub fn create(dir: &Path, now: UnixTime) -> Result<Self, AuthorityError> {
        durable::private_folder(dir).on_path("create directory", dir)?;
        let (cert_path, key_path) = (dir.join(CERT_FILE), dir.join(KEY_FILE));
        if cert_path.exists() {
            return Err(AuthorityError::Exists(dir.to_owned()));
        }
        let key = KeyPair::generate().map_err(AuthorityError::Make)?;
        let mut params = authority_params(&key);
        set_validity(&mut params, now, Duration::from_secs(AUTHORITY_LIFETIME_DAYS * DAY_S));
        let certificate_pem = params.self_signed(&key).map_err(AuthorityError::Make)?.pem();
        // The certificate is written last: when it is there, so is the key.
        durable::sweep(dir).on_path("clean up", dir)?;
        durable::write(&key_path, key.serialize_pem().as_bytes(), durable::SECRET)
            .on_path("write", &key_path)?;
        durable::write(&cert_path, certificate_pem.as_bytes(), durable::READABLE)
            .on_path("write", &cert_path)?;
        Self::open(dir)
    }

    /// Opens the authority in a folder.
    ///
    /// # Errors
    /// When a file is missing or damaged, or the key does not match the certificate.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let (cert_path, key_path) = (dir.join(CERT_FILE), dir.join(KEY_FILE));
        let certificate_pem = read_small(&cert_path)?;
        let key_pem = read_small(&key_path)?;
        let damaged =
            |path: &Path, source: Cause| AuthorityError::Damaged { path: path.to_owned(), source };
        let certificate = CertificateDer::from_pem_slice(certificate_pem.as_bytes())
            .map_err(|error| damaged(&cert_path, error.into()))?;
        let key = KeyPair::from_pem(&key_pem).map_err(|error| damaged(&key_path, error.into()))?;
        let read = webpki::EndEntityCert::try_from(&certificate)
            .map_err(|error| damaged(&cert_path, error.into()))?;
        if read.subject_public_key_info().as_ref() != key.subject_public_key_info() {
            return Err(damaged(&key_path, "key does not match ca.pem".into()));
        }
        let issuer = Issuer::new(authority_params(&key), key);
        Ok(Self { issuer, certificate, certificate_pem })
    }

    /// The authority's certificate in PEM: the root that everyone trusts.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// The authority's certificate, DER.
    #[must_use]
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of the authority's certificate (DER), in hexadecimal: what a join token carries.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        sha256_hex(&self.certificate)
    }

    /// A secret of whoever has the authority's key, for one purpose.
    #[must_use]
    pub fn secret(&self, purpose: &str) -> Secret {
        Secret::derive(self.issuer.key().serialized_der(), purpose)
    }

    /// Issues a certificate for `peer` and the request's key, in PEM.
    ///
    /// The caller decides whether the requester may be `peer`: by a join token, or because it
    /// authenticated with the old certificate. `group`: the group of an agent; its certificate
    /// proves it to a hub that has lost its registry.
    ///
    /// # Errors
    /// [`AuthorityError::WrongPeer`] when the request is for another peer.
    pub fn issue(
        &self,
        request: &IdentityRequest,
        peer: &Peer,
        group: Option<&str>,
        now: UnixTime,
    ) -> Result<String, AuthorityError> {
        if request.peer() != peer {
            return Err(AuthorityError::WrongPeer {
                asked: Box::new(request.peer().clone()),
                allowed: Box::new(peer.clone()),
            });
        }
        self.certify(request.public_key(), peer, group, LIFETIME, now)
    }

    /// Makes a key and certifies it: for `cohort init` (the hub and the first operator), for the
    /// hub's own renewal, and for tests.
    ///
    /// # Errors
    /// When no key can be generated.
    pub fn make_identity(
        &self,
        peer: &Peer,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<Identity, AuthorityError> {
        let pair = KeyPair::generate().map_err(AuthorityError::Make)?;
        let key = PublicKey::from_info(pair.subject_public_key_info())
            .expect("the default kind of key is P-256");
        let chain = self.certify(&key, peer, None, lifetime, now)?;
        Identity::from_pem(&chain, &pair.serialize_pem(), &self.certificate_pem)
            .map_err(|error| AuthorityError::Unusable(Box::new(error)))
    }

    fn certify(
        &self,
        key: &PublicKey,
        peer: &Peer,
        group: Option<&str>,
        lifetime: Duration,
        now: UnixTime,
    ) -> Result<String, AuthorityError> {
        let mut params =
            CertificateParams::new(vec![peer.dns_name()]).map_err(AuthorityError::Make)?;
        if let Some(group) = group {
            let uri = group_uri(group).try_into().map_err(AuthorityError::Make)?;
            params.subject_alt_names.push(SanType::URI(uri));
        }
        params.distinguished_name = named(&peer.dns_name());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        // Every process is both a server and a client.
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(random_serial()?);
        set_validity(&mut params, now, lifetime);
        Ok(params.signed_by(key, &self.issuer).map_err(AuthorityError::Make)?.pem())
    }
}

/// The contents of the authority's certificate, derived from its key alone: no certificate parser
/// is needed to open it.
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

fn set_validity(params: &mut CertificateParams, now: UnixTime, lifetime: Duration) {
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    let from = now.as_secs().saturating_sub(BACKDATED.as_secs());
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

/// Why the authority could not be opened, or did not issue a certificate.
#[derive(Debug, thiserror::Error)]
pub enum AuthorityError {
    #[error("{} has an authority already; every certificate in use depends on it", .0.display())]
    Exists(PathBuf),
    #[error("authority's files are not accessible")]
    File(#[from] FileError),
    /// A file is truncated, malformed, or does not match the other one.
    #[error("authority's file {} is damaged", path.display())]
    Damaged { path: PathBuf, source: Cause },
    /// A request for a peer that its sender may not be.
    #[error("request is for {asked}, but its sender may only be {allowed}")]
    WrongPeer { asked: Box<Peer>, allowed: Box<Peer> },
    #[error("cannot generate a key or certificate")]
    Make(#[source] rcgen::Error),
    #[error("generated identity does not verify")]
    Unusable(#[source] Box<IdentityError>),
    #[error("operating system gives no randomness")]
    Randomness,
}
