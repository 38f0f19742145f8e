//! What a process holds to prove who it is: a certificate, its key, and the authorities it trusts.
//!
//! Three files in one folder: `cert.pem`, `key.pem` (mode 0600) and `ca.pem`. Two files cannot be
//! replaced at once, so a new key waits in `key.pem.next` until its certificate is in place;
//! [`Identity::load`] finishes what a crash interrupted.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cohort_base::{Cause, FileError, OnPath as _, durable};
use rcgen::KeyPair;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime};

use crate::peer::{InvalidPeer, Peer, peer_of, sha256_hex};
use crate::request::{IdentityRequest, RequestError};
use crate::secret::Secret;

const CERT_FILE: &str = "cert.pem";
const KEY_FILE: &str = "key.pem";
const NEXT_KEY_FILE: &str = "key.pem.next";
const ROOTS_FILE: &str = "ca.pem";

/// A chain, a key or a handful of authorities takes a few kilobytes.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// The longest accepted chain, leaf included. The built-in authority issues chains of one; external
/// authorities have one or two intermediates.
pub(crate) const CHAIN_MAX: usize = 6;

/// The period in which a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    pub not_before: UnixTime,
    /// The last second in which it is valid.
    pub not_after: UnixTime,
}

/// A certificate chain, its private key, and the trusted authorities.
pub struct Identity {
    peer: Peer,
    validity: Validity,
    chain_pem: String,
    key_pem: String,
    roots_pem: String,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    roots: Vec<CertificateDer<'static>>,
    certified: Arc<CertifiedKey>,
}

impl fmt::Debug for Identity {
    /// Without the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("peer", &self.peer)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Parses PEM texts and checks that they belong together: the key matches the certificate, the
    /// chain leads to one of the authorities, the certificate names a peer. Dates are not checked:
    /// an expired identity can still be inspected and renewed.
    ///
    /// # Errors
    /// Names the text that is wrong.
    pub fn from_pem(chain: &str, key: &str, roots: &str) -> Result<Self, IdentityError> {
        let (chain_pem, key_pem, roots_pem) = (chain, key, roots);
        let chain = certificates(chain_pem, "certificate")?;
        let roots = certificates(roots_pem, "list of authorities")?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|error| IdentityError::damaged("private key", error))?;
        let provider = provider();
        let certified = certified(&chain, &key, &provider)?;
        let peer = peer_of(&chain).map_err(IdentityError::Peer)?;
        let validity = validity_of(&chain, &roots)?;
        Ok(Self {
            peer,
            validity,
            chain_pem: chain_pem.to_owned(),
            key_pem: key_pem.to_owned(),
            roots_pem: roots_pem.to_owned(),
            chain,
            key,
            roots,
            certified: Arc::new(certified),
        })
    }

    /// Generates a key, stores it in the folder, and returns the request for its certificate. A
    /// second call before [`Identity::accept`] returns a request for the *same* key: after a crash
    /// or a lost answer the join token can be used again.
    ///
    /// # Errors
    /// When the key cannot be generated, written or read.
    pub fn prepare_request(dir: &Path, peer: Peer) -> Result<IdentityRequest, IdentityError> {
        fs::create_dir_all(dir).on_path("create directory", dir)?;
        let path = dir.join(NEXT_KEY_FILE);
        let waiting = match read_small(&path) {
            Ok(pem) => KeyPair::from_pem(&pem).ok(),
            Err(error) if error.source.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error.into()),
        };
        let pair = if let Some(pair) = waiting {
            pair
        } else {
            let pair = KeyPair::generate().map_err(IdentityError::MakeKey)?;
            durable::write(&path, pair.serialize_pem().as_bytes(), durable::SECRET)
                .on_path("write", &path)?;
            pair
        };
        IdentityRequest::new(peer, &pair).map_err(IdentityError::Request)
    }

    /// Completes [`Identity::prepare_request`] with the issued certificate, and saves the identity.
    ///
    /// # Errors
    /// When the certificate is not for the waiting key or does not lead to one of `roots`; the old
    /// identity is unchanged then.
    pub fn accept(dir: &Path, chain: &str, roots: &str) -> Result<Self, IdentityError> {
        let key = read_small(&dir.join(NEXT_KEY_FILE))?;
        let identity = Self::from_pem(chain, &key, roots)?;
        identity.save(dir)?;
        Ok(identity)
    }

    /// Completes [`Identity::prepare_request`] with the certificate that renews this identity, and
    /// saves the result. `authorities`, in PEM, are those to trust from now on. A new one is
    /// believed only if it issued this certificate, and the chain proves that one trusted so far
    /// has certified it.
    ///
    /// # Errors
    /// When the certificate is not for the waiting key, does not lead to one of this identity's
    /// authorities, or is no improvement, or an authority is not vouched for; the identity on disk
    /// is unchanged then.
    pub fn accept_renewal(
        &self,
        dir: &Path,
        chain: &str,
        authorities: &str,
        now: UnixTime,
    ) -> Result<Self, IdentityError> {
        let key = read_small(&dir.join(NEXT_KEY_FILE))?;
        let renewed = Self::from_pem(chain, &key, &self.roots_pem)?;
        let next = Self::from_pem(chain, &key, authorities)?;
        let foreign = next
            .roots
            .iter()
            .find(|root| !self.roots.contains(root) && !renewed.is_issued_by(root));
        if let Some(foreign) = foreign {
            return Err(IdentityError::Foreign(sha256_hex(foreign)));
        }
        let renewed = next;
        check_renewal((&self.peer, self.validity), (&renewed.peer, renewed.validity), now)?;
        renewed.save(dir)?;
        Ok(renewed)
    }

    /// Saves the three files. A crash at any instruction leaves the old identity or the new one.
    ///
    /// # Errors
    /// When the file system refuses.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        fs::create_dir_all(dir).on_path("create directory", dir)?;
        let write = |name: &str, text: &str, mode| {
            let path = dir.join(name);
            durable::sweep_for(&path)
                .and_then(|()| durable::write(&path, text.as_bytes(), mode))
                .on_path("write", &path)
        };
        write(NEXT_KEY_FILE, &self.key_pem, durable::SECRET)?;
        write(ROOTS_FILE, &self.roots_pem, durable::READABLE)?;
        // From here on `load` takes the waiting key, because only that one matches.
        write(CERT_FILE, &self.chain_pem, durable::READABLE)?;
        put_key_in_place(dir)
    }

    /// Loads the three files and finishes an interrupted save.
    ///
    /// # Errors
    /// When a file is missing, damaged, or does not match the others.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let read = |name: &str| read_small(&dir.join(name));
        let (chain, roots) = (read(CERT_FILE)?, read(ROOTS_FILE)?);
        let with_key = |name: &str| Self::from_pem(&chain, &read(name)?, &roots);
        let first = match with_key(KEY_FILE) {
            Ok(identity) => return Ok(identity),
            Err(error) => error,
        };
        // Report what is wrong with `key.pem`, not with a leftover.
        let identity = with_key(NEXT_KEY_FILE).map_err(|_| first)?;
        put_key_in_place(dir)?;
        Ok(identity)
    }

    /// Whether the folder has an identity, even a damaged one.
    #[must_use]
    pub fn exists(dir: &Path) -> bool {
        dir.join(CERT_FILE).exists()
    }

    /// The peer that the certificate names.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// When the certificate is valid; its renewal is due before the end.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Whether it is time to renew: less than a third of the certificate's lifetime is left.
    #[must_use]
    pub fn is_expiring(&self, now: UnixTime) -> bool {
        let (from, until) = (self.validity.not_before.as_secs(), self.validity.not_after.as_secs());
        now.as_secs() >= until.saturating_sub(until.saturating_sub(from) / 3)
    }

    /// Whether the certificate has expired.
    #[must_use]
    pub fn is_expired(&self, now: UnixTime) -> bool {
        now.as_secs() > self.validity.not_after.as_secs()
    }

    /// The certificates, leaf first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The certificates in PEM, leaf first.
    #[must_use]
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// The authorities that this identity trusts its peers to be certified by.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The fingerprint of the trusted authority that issued the certificate itself; `None` if that
    /// is one between.
    #[must_use]
    pub fn issuer(&self) -> Option<String> {
        let roots = &self.roots;
        roots.iter().find(|root| self.is_issued_by(root)).map(|root| sha256_hex(root))
    }

    /// The fingerprints of the trusted authorities.
    #[must_use]
    pub fn trusted(&self) -> Vec<String> {
        self.roots.iter().map(|root| sha256_hex(root)).collect()
    }

    fn is_issued_by(&self, authority: &CertificateDer<'_>) -> bool {
        let (leaf, at) = (&self.chain[..1], self.validity.not_before);
        let usage = webpki::KeyUsage::client_auth();
        verify_chain(leaf, std::slice::from_ref(authority), at, usage).is_ok()
    }

    /// A secret of whoever has this identity's key, for one purpose: another one after a renewal.
    #[must_use]
    pub fn secret(&self, purpose: &str) -> Secret {
        Secret::derive(self.key.secret_der(), purpose)
    }

    pub(crate) fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    pub(crate) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }
}

/// Whether a certificate may replace the present one: for the same peer, valid now, and ending no
/// earlier.
fn check_renewal(
    present: (&Peer, Validity),
    renewed: (&Peer, Validity),
    now: UnixTime,
) -> Result<(), NotARenewal> {
    let ((own, present), (peer, validity)) = (present, renewed);
    let (now, until) = (now.as_secs(), validity.not_after.as_secs());
    if peer != own {
        let (peer, own) = (Box::new(peer.clone()), Box::new(own.clone()));
        return Err(NotARenewal::Peer { peer, own });
    }
    if now < validity.not_before.as_secs() || now > until {
        return Err(NotARenewal::NotNow { from: validity.not_before.as_secs(), until, now });
    }
    if until < present.not_after.as_secs() {
        return Err(NotARenewal::Earlier { until, present: present.not_after.as_secs() });
    }
    Ok(())
}

/// The cryptographic provider of all TLS and signatures.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// The authorities as a rustls store.
pub(crate) fn root_store(roots: &[CertificateDer<'_>]) -> Result<RootCertStore, IdentityError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store
            .add(root.clone().into_owned())
            .map_err(|error| IdentityError::damaged("list of authorities", error))?;
    }
    Ok(store)
}

/// Reads a text file of at most [`FILE_BYTES_MAX`].
pub(crate) fn read_small(path: &Path) -> Result<String, FileError> {
    let read = || {
        let mut text = String::new();
        let read = File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
        if read as u64 > FILE_BYTES_MAX {
            let reason = format!("file is larger than {FILE_BYTES_MAX} bytes");
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        Ok(text)
    };
    read().on_path("read", path)
}

/// Verifies a chain at a point in time.
pub(crate) fn verify_chain(
    chain: &[CertificateDer<'_>],
    roots: &[CertificateDer<'_>],
    now: UnixTime,
    usage: webpki::KeyUsage,
) -> Result<(), webpki::Error> {
    let anchors = roots
        .iter()
        .map(webpki::anchor_from_trusted_cert)
        .collect::<Result<Vec<TrustAnchor<'_>>, _>>()?;
    let (leaf, between) = chain.split_first().ok_or(webpki::Error::UnknownIssuer)?;
    webpki::EndEntityCert::try_from(leaf)?
        .verify_for_usage(webpki::ALL_VERIFICATION_ALGS, &anchors, between, now, usage, None, None)
        .map(|_| ())
}

fn certified(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, IdentityError> {
    CertifiedKey::from_der(chain.to_vec(), key.clone_key(), provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => IdentityError::KeyMismatch,
        error => IdentityError::damaged("private key or certificate", error),
    })
}

/// The first and the last representable second.
const FIRST: UnixTime = UnixTime::since_unix_epoch(Duration::ZERO);
const LAST: UnixTime = UnixTime::since_unix_epoch(Duration::from_secs(u32::MAX as u64 * 64));

/// When the first certificate of a chain is valid. webpki parses dates but exposes them only in its
/// errors, so it is asked for the first and the last representable second. Does *not* verify the
/// chain.
pub(crate) fn unverified_validity(chain: &[CertificateDer<'_>]) -> Validity {
    let verify = |now| verify_chain(chain, &[], now, webpki::KeyUsage::client_auth());
    let not_before = match verify(FIRST) {
        Err(webpki::Error::CertNotValidYet { not_before, .. }) => not_before,
        Ok(()) | Err(_) => FIRST,
    };
    let not_after = match verify(LAST) {
        Err(webpki::Error::CertExpired { not_after, .. }) => not_after,
        Ok(()) | Err(_) => LAST,
    };
    Validity { not_before, not_after }
}

/// When the first certificate of a chain is valid, after verifying the chain.
fn validity_of(
    chain: &[CertificateDer<'_>],
    roots: &[CertificateDer<'_>],
) -> Result<Validity, IdentityError> {
    let validity = unverified_validity(chain);
    verify_chain(chain, roots, validity.not_before, webpki::KeyUsage::client_auth())
        .map_err(IdentityError::Untrusted)?;
    Ok(validity)
}

pub(crate) fn certificates(
    pem: &str,
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let list = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| IdentityError::damaged(what, error))?;
    match list.len() {
        0 => Err(IdentityError::damaged(what, "it contains no certificate")),
        1..=CHAIN_MAX => Ok(list),
        many => Err(IdentityError::damaged(
            what,
            format!("it contains {many} certificates, the limit is {CHAIN_MAX}"),
        )),
    }
}

fn put_key_in_place(dir: &Path) -> Result<(), IdentityError> {
    let path = dir.join(KEY_FILE);
    Ok(durable::rename(&dir.join(NEXT_KEY_FILE), &path).on_path("replace", &path)?)
}

/// Why a certificate does not replace the present one. Times are Unix times in seconds.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotARenewal {
    #[error("it is for {peer}, this is {own}")]
    Peer { peer: Box<Peer>, own: Box<Peer> },
    #[error("it is valid from {from} until {until}, by this clock it is {now}")]
    NotNow { from: u64, until: u64, now: u64 },
    #[error("it ends at {until}, the present one at {present}")]
    Earlier { until: u64, present: u64 },
}

/// Why an identity could not be loaded, saved or used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("identity's files are not accessible")]
    File(#[from] FileError),
    #[error("identity's {what} is damaged")]
    Damaged { what: &'static str, source: Cause },
    #[error("identity's private key does not match its certificate")]
    KeyMismatch,
    #[error("identity's certificate is not issued by a trusted authority")]
    Untrusted(#[source] webpki::Error),
    #[error("identity's certificate does not name a peer")]
    Peer(#[source] InvalidPeer),
    #[error("no authority that is trusted vouches for the new authority {0}")]
    Foreign(String),
    #[error("certificate does not renew the present one")]
    Renewal(#[from] NotARenewal),
    #[error("cannot generate a private key")]
    MakeKey(#[source] rcgen::Error),
    #[error("cannot make an identity request")]
    Request(#[source] RequestError),
}

impl IdentityError {
    fn damaged(what: &'static str, source: impl Into<Cause>) -> Self {
        Self::Damaged { what, source: source.into() }
    }
}
