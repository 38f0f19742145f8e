//! The certificate authority: the built-in one, or one of an organisation's own.
//!
//! Two files in one folder: `ca.pem` (the certificate, public) and `ca-key.pem` (mode 0600).
//!
//! While one authority replaces another, `ca.pem` has three certificates: the new one; the new one
//! as the old one certifies it, which goes into every chain, so that peers who have not heard of
//! the new one accept what it issues; and the old one, which everyone still trusts. The old key is
//! gone from then on. Two files cannot be replaced at once: the new key waits in
//! `ca-key.pem.next`, and counts once `ca.pem` is the certificate of that.

use std::path::{Path, PathBuf};
use std::time::Duration;

use cohort_base::{Cause, FileError, OnPath as _, durable};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::identity::{Identity, IdentityError, certificates, read_small, verify_chain};
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
const NEXT_KEY_FILE: &str = "ca-key.pem.next";

/// A certificate authority with its private key.
#[derive(Debug)]
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    certificate_pem: String,
    /// The authority that this one replaces, until everyone has a certificate of this one.
    replaced: Option<Replaced>,
}

#[derive(Debug)]
struct Replaced {
    /// This authority's certificate by the old one.
    cross_pem: String,
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
        let certificate_pem = self_signed(&key, now)?;
        // The certificate is written last: when it is there, so is the key.
        durable::sweep(dir).on_path("clean up", dir)?;
        durable::write(&key_path, key.serialize_pem().as_bytes(), durable::SECRET)
            .on_path("write", &key_path)?;
        durable::write(&cert_path, certificate_pem.as_bytes(), durable::READABLE)
            .on_path("write", &cert_path)?;
        Self::open(dir)
    }

    /// Puts an authority that exists elsewhere into a folder: a certificate and its key, such as an
    /// intermediate of an organisation's own. Peers will trust this certificate, and not the ones
    /// above it.
    ///
    /// # Errors
    /// [`AuthorityError::Unfit`] when it cannot do what an authority has to;
    /// [`AuthorityError::Exists`] when the folder has one already.
    pub fn import(
        dir: &Path,
        certificate_pem: &str,
        key_pem: &str,
        now: UnixTime,
    ) -> Result<Self, AuthorityError> {
        let (cert_path, key_path) = (dir.join(CERT_FILE), dir.join(KEY_FILE));
        if cert_path.exists() {
            return Err(AuthorityError::Exists(dir.to_owned()));
        }
        let unfit = |why: &str, source: Option<Cause>| AuthorityError::Unfit {
            why: why.to_owned(),
            source,
        };
        let certificates = certificates(certificate_pem, "certificate of the authority")
            .map_err(|error| unfit("its file has no certificate", Some(error.into())))?;
        let [certificate] = certificates.as_slice() else {
            return Err(unfit("its file has more than the one certificate that issues", None));
        };
        let key = KeyPair::from_pem(key_pem)
            .map_err(|error| unfit("its key cannot be used", Some(error.into())))?;
        if public_key_of(certificate).as_deref() != Some(&key.subject_public_key_info()) {
            return Err(unfit("the key is not that of the certificate", None));
        }
        let after_s = now.as_secs() + LIFETIME.as_secs();
        let after = UnixTime::since_unix_epoch(Duration::from_secs(after_s));
        for (at, why) in [(now, "it is not valid now"), (after, "it ends within 400 days")] {
            // A certificate verifies by itself if its period includes the time.
            if !is_valid(certificate, at) {
                return Err(unfit(why, None));
            }
        }
        let params = x509(certificate).map_err(|error| unfit("it cannot be read", Some(error)))?;
        if params != (true, true) {
            return Err(unfit(
                "it may not certify: basicConstraints CA, keyUsage keyCertSign",
                None,
            ));
        }
        let authority = Self::of(certificate_pem.to_owned(), certificate.clone(), None, key)
            .map_err(|error| unfit("it cannot be read", Some(error.into())))?;
        // What it issues has to verify: name constraints and algorithms.
        let peer = Peer::new(crate::Role::Hub, "hub").expect("a name");
        authority
            .make_identity(&peer, LIFETIME, now)
            .map_err(|error| unfit("what it issues does not verify", Some(error.into())))?;
        durable::private_folder(dir).on_path("create directory", dir)?;
        durable::sweep(dir).on_path("clean up", dir)?;
        durable::write(&key_path, key_pem.as_bytes(), durable::SECRET)
            .on_path("write", &key_path)?;
        durable::write(&cert_path, certificate_pem.as_bytes(), durable::READABLE)
            .on_path("write", &cert_path)?;
        Self::open(dir)
    }

    /// Opens the authority in a folder, and finishes an interrupted [`Authority::rotate`].
    ///
    /// # Errors
    /// When a file is missing or damaged, or the key does not match the certificate.
    pub fn open(dir: &Path) -> Result<Self, AuthorityError> {
        let (cert_path, key_path) = (dir.join(CERT_FILE), dir.join(KEY_FILE));
        let damaged =
            |path: &Path, source: Cause| AuthorityError::Damaged { path: path.to_owned(), source };
        let blocks = pem_blocks(&read_small(&cert_path)?);
        let mut read = Vec::new();
        for block in blocks {
            let certificate = CertificateDer::from_pem_slice(block.as_bytes())
                .map_err(|error| damaged(&cert_path, error.into()))?;
            read.push((block, certificate));
        }
        let mut read = read.into_iter();
        let (certificate_pem, certificate) =
            read.next().ok_or_else(|| damaged(&cert_path, "it has no certificate".into()))?;
        let replaced = match (read.next(), read.next(), read.next()) {
            (None, ..) => None,
            (Some((cross_pem, _)), Some((certificate_pem, certificate)), None) => {
                Some(Replaced { cross_pem, certificate, certificate_pem })
            }
            _ => return Err(damaged(&cert_path, "it has 1 certificate, or 3".into())),
        };
        let public = public_key_of(&certificate)
            .ok_or_else(|| damaged(&cert_path, "its certificate cannot be read".into()))?;
        let fits = |path: &Path| -> Result<Option<KeyPair>, AuthorityError> {
            let pem = read_small(path)?;
            let key = KeyPair::from_pem(&pem).map_err(|error| damaged(path, error.into()))?;
            Ok((key.subject_public_key_info() == public).then_some(key))
        };
        let key = match fits(&key_path)? {
            Some(key) => key,
            None => {
                let next = dir.join(NEXT_KEY_FILE);
                let waiting = if next.exists() { fits(&next)? } else { None };
                let key = waiting
                    .ok_or_else(|| damaged(&key_path, "key does not match ca.pem".into()))?;
                durable::rename(&next, &key_path).on_path("replace", &key_path)?;
                key
            }
        };
        Self::of(certificate_pem, certificate, replaced, key)
    }

    fn of(
        certificate_pem: String,
        certificate: CertificateDer<'static>,
        replaced: Option<Replaced>,
        key: KeyPair,
    ) -> Result<Self, AuthorityError> {
        let issuer = Issuer::from_ca_cert_der(&certificate, key).map_err(AuthorityError::Make)?;
        Ok(Self { issuer, certificate, certificate_pem, replaced })
    }

    /// Replaces the authority by a new one, which the old one certifies, and which issues from now
    /// on. Both are trusted until [`Authority::save_alone`]. The old key is removed.
    ///
    /// # Errors
    /// [`AuthorityError::Rotating`] when that has happened and is not finished; when a file
    /// operation fails: then the old authority is unchanged.
    pub fn rotate(&self, dir: &Path, now: UnixTime) -> Result<Self, AuthorityError> {
        if self.replaced.is_some() {
            return Err(AuthorityError::Rotating);
        }
        let key = KeyPair::generate().map_err(AuthorityError::Make)?;
        let own = self_signed(&key, now)?;
        let mut params = authority_params(&key, 0);
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(random_serial()?);
        set_validity(&mut params, now, Duration::from_secs(AUTHORITY_LIFETIME_DAYS * DAY_S));
        let cross = params.signed_by(&key, &self.issuer).map_err(AuthorityError::Make)?.pem();
        let path = dir.join(NEXT_KEY_FILE);
        durable::write(&path, key.serialize_pem().as_bytes(), durable::SECRET)
            .on_path("write", &path)?;
        let path = dir.join(CERT_FILE);
        let all = [own.as_str(), &cross, &self.certificate_pem].concat();
        durable::write(&path, all.as_bytes(), durable::READABLE).on_path("write", &path)?;
        Self::open(dir)
    }

    /// The same without trust in the authority that it has replaced: that ends once
    /// [`Authority::save_alone`] has saved it.
    ///
    /// # Errors
    /// [`AuthorityError::NotRotating`] when it has replaced none.
    pub fn alone(&self) -> Result<Self, AuthorityError> {
        if self.replaced.is_none() {
            return Err(AuthorityError::NotRotating);
        }
        let key = self.issuer.key().serialize_pem();
        let key = KeyPair::from_pem(&key).map_err(AuthorityError::Make)?;
        Self::of(self.certificate_pem.clone(), self.certificate.clone(), None, key)
    }

    /// Ends the trust in the authority that this one has replaced.
    ///
    /// # Errors
    /// When a file operation fails.
    pub fn save_alone(&self, dir: &Path) -> Result<(), AuthorityError> {
        let path = dir.join(CERT_FILE);
        durable::write(&path, self.certificate_pem.as_bytes(), durable::READABLE)
            .on_path("write", &path)?;
        Ok(())
    }

    /// The authorities to trust, in PEM: this one, and the one that it replaces.
    #[must_use]
    pub fn trusted_pem(&self) -> String {
        let old = self.replaced.as_ref().map_or("", |old| &old.certificate_pem);
        format!("{}{old}", self.certificate_pem)
    }

    /// The fingerprints of the authorities to trust: this one, and the one that it replaces.
    #[must_use]
    pub fn trusted(&self) -> Vec<String> {
        let old = self.replaced.as_ref().map(|old| sha256_hex(&old.certificate));
        [self.fingerprint()].into_iter().chain(old).collect()
    }

    /// Whether this authority replaces one that is still trusted.
    #[must_use]
    pub fn is_rotating(&self) -> bool {
        self.replaced.is_some()
    }

    /// What a joiner trusts first, in PEM: while this authority replaces another one, that one,
    /// because not everyone it will talk to has a certificate of this one.
    #[must_use]
    pub fn anchor_pem(&self) -> &str {
        self.replaced.as_ref().map_or(&self.certificate_pem, |old| &old.certificate_pem)
    }

    /// The fingerprint of [`Authority::anchor_pem`]: what a join token carries.
    #[must_use]
    pub fn anchor(&self) -> String {
        let old = self.replaced.as_ref().map(|old| &old.certificate);
        sha256_hex(old.unwrap_or(&self.certificate))
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

    /// SHA-256 of the authority's certificate (DER), in hexadecimal.
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
        Identity::from_pem(&chain, &pair.serialize_pem(), &self.trusted_pem())
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
        let own = params.signed_by(key, &self.issuer).map_err(AuthorityError::Make)?.pem();
        Ok(own + self.replaced.as_ref().map_or("", |old| &old.cross_pem))
    }
}

/// An authority's own certificate.
fn self_signed(key: &KeyPair, now: UnixTime) -> Result<String, AuthorityError> {
    // One below it: its successor, while that replaces it.
    let mut params = authority_params(key, 1);
    set_validity(&mut params, now, Duration::from_secs(AUTHORITY_LIFETIME_DAYS * DAY_S));
    Ok(params.self_signed(key).map_err(AuthorityError::Make)?.pem())
}

/// The contents of an authority's certificate; `below`: how many authorities may be below it.
fn authority_params(key: &KeyPair, below: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    let mark = sha256_hex(&key.subject_public_key_info());
    params.distinguished_name = named(&format!("Cohort authority {}", &mark[..16]));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn public_key_of(certificate: &CertificateDer<'_>) -> Option<Vec<u8>> {
    let read = webpki::EndEntityCert::try_from(certificate).ok()?;
    Some(read.subject_public_key_info().to_vec())
}

/// The blocks of a PEM text, each with its line break.
fn pem_blocks(text: &str) -> Vec<String> {
    let ends = text.split_inclusive("-----END CERTIFICATE-----");
    let blocks = ends.filter(|block| block.contains("-----BEGIN CERTIFICATE-----"));
    blocks.map(|block| format!("{}\n", block.trim())).collect()
}

/// Whether the period of a certificate includes a time.
fn is_valid(certificate: &CertificateDer<'_>, at: UnixTime) -> bool {
    let chain = std::slice::from_ref(certificate);
    // Its issuer is looked for only within its period.
    !matches!(
        verify_chain(chain, &[], at, webpki::KeyUsage::client_auth()),
        Err(webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. })
    )
}

/// Whether a certificate is that of an authority, and may sign certificates.
fn x509(certificate: &CertificateDer<'_>) -> Result<(bool, bool), Cause> {
    let (_, read) = x509_parser::parse_x509_certificate(certificate)?;
    let usage = read.key_usage()?.is_none_or(|usage| usage.value.key_cert_sign());
    Ok((read.is_ca(), usage))
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
    #[error("this authority cannot be used: {why}")]
    Unfit {
        why: String,
        #[source]
        source: Option<Cause>,
    },
    #[error("the authority is being replaced already")]
    Rotating,
    #[error("no authority is being replaced")]
    NotRotating,
    #[error("cannot generate a key or certificate")]
    Make(#[source] rcgen::Error),
    #[error("generated identity does not verify")]
    Unusable(#[source] Box<IdentityError>),
    #[error("operating system gives no randomness")]
    Randomness,
}
