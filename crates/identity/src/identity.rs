//! What a part of Cohort holds to prove who it is: a certificate, its key, and whom it trusts.
//!
//! Three files in a folder: `cert.pem`, `key.pem` (0600) and `ca.pem`. Two renames are not one, so
//! a new key lies in `key.pem.next` until its certificate is in place; [`Identity::load`] finishes
//! what a crash interrupted.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::KeyPair;
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::sign::CertifiedKey;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, TrustAnchor, UnixTime};

use crate::durable::{folder_of, sync_folder, write_durable, write_durable_secret};
use crate::peer::{InvalidPeer, Peer, peer_of};
use crate::request::{IdentityRequest, RequestError};
use crate::tls::provider;

const CERT_FILE: &str = "cert.pem";
const KEY_FILE: &str = "key.pem";
const NEXT_KEY_FILE: &str = "key.pem.next";
const ROOTS_FILE: &str = "ca.pem";

/// A chain, a key or a handful of authorities is a few kilobytes; a file beyond this is not one.
const FILE_BYTES_MAX: u64 = 256 * 1024;

/// The longest chain that is looked at, the holder's certificate included. The built-in authority
/// makes chains of one; authorities that people bring have one or two in between.
pub(crate) const CHAIN_MAX: usize = 6;

/// When a certificate is good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// From when, in Unix time.
    pub not_before: UnixTime,
    /// Until when, in Unix time.
    pub not_after: UnixTime,
}

/// A certificate chain, its private key, and the authorities that its holder trusts.
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
    /// Never shows the key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("peer", &self.peer)
            .field("validity", &self.validity)
            .finish_non_exhaustive()
    }
}

impl Identity {
    /// Puts an identity together from PEM texts, and checks that they belong together: the key is
    /// the certificate's, the chain leads to one of the authorities, the certificate names a peer.
    /// Dates are not checked: an expired identity can still be looked at and renewed.
    ///
    /// # Errors
    /// Says which of the three texts is wrong, and how.
    pub fn from_pem(chain: &str, key: &str, roots: &str) -> Result<Self, IdentityError> {
        let (chain_pem, key_pem, roots_pem) = (chain, key, roots);
        let chain = certificates(chain_pem, "certificate")?;
        let roots = certificates(roots_pem, "list of authorities")?;
        let key = PrivateKeyDer::from_pem_slice(key_pem.as_bytes())
            .map_err(|error| IdentityError::damaged("private key", error.to_string()))?;
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

    /// Makes a key and the request for its certificate; the key lives in memory only. See
    /// [`Identity::prepare_request`] for one that survives a crash.
    ///
    /// # Errors
    /// When no key can be made.
    pub fn generate_request(peer: Peer) -> Result<(KeyPair, IdentityRequest), IdentityError> {
        let pair = KeyPair::generate().map_err(IdentityError::MakeKey)?;
        let request = IdentityRequest::new(peer, &pair).map_err(IdentityError::Request)?;
        Ok((pair, request))
    }

    /// Makes a key, keeps it in the folder, and gives the request for its certificate. Called again
    /// before [`Identity::accept`], it gives a request with the *same* key: an asker that crashed or
    /// lost the answer can ask again with its join token.
    ///
    /// # Errors
    /// When the key cannot be made, written or read.
    pub fn prepare_request(dir: &Path, peer: Peer) -> Result<IdentityRequest, IdentityError> {
        fs::create_dir_all(dir).map_err(|error| IdentityError::file(dir, error))?;
        let path = dir.join(NEXT_KEY_FILE);
        let waiting = match read_small(&path) {
            Ok(pem) => KeyPair::from_pem(&pem).ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(IdentityError::file(&path, error)),
        };
        let pair = if let Some(pair) = waiting {
            pair
        } else {
            let pair = KeyPair::generate().map_err(IdentityError::MakeKey)?;
            write_durable_secret(&path, pair.serialize_pem().as_bytes())
                .map_err(|error| IdentityError::file(&path, error))?;
            pair
        };
        IdentityRequest::new(peer, &pair).map_err(IdentityError::Request)
    }

    /// Takes the certificate that answers [`Identity::prepare_request`], and saves the identity.
    ///
    /// # Errors
    /// When the certificate is not for the waiting key or not by one of `roots`; nothing of the
    /// old identity is then changed.
    pub fn accept(dir: &Path, chain: &str, roots: &str) -> Result<Self, IdentityError> {
        let path = dir.join(NEXT_KEY_FILE);
        let key = read_small(&path).map_err(|error| IdentityError::file(&path, error))?;
        let identity = Self::from_pem(chain, &key, roots)?;
        identity.save(dir)?;
        Ok(identity)
    }

    /// Saves the three files. A crash at any instruction leaves the old identity or the new one.
    ///
    /// # Errors
    /// Whatever the file system says.
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        fs::create_dir_all(dir).map_err(|error| IdentityError::file(dir, error))?;
        let write = |name: &str, text: &str, secret: bool| {
            let path = dir.join(name);
            let written = if secret {
                write_durable_secret(&path, text.as_bytes())
            } else {
                write_durable(&path, text.as_bytes())
            };
            written.map_err(|error| IdentityError::file(&path, error))
        };
        write(NEXT_KEY_FILE, &self.key_pem, true)?;
        write(ROOTS_FILE, &self.roots_pem, false)?;
        // From here on the waiting key is the right one, and `load` finds it.
        write(CERT_FILE, &self.chain_pem, false)?;
        put_key_in_place(dir)
    }

    /// Loads the three files, and finishes a save that a crash interrupted.
    ///
    /// # Errors
    /// When a file is missing, damaged, or does not belong to the others.
    pub fn load(dir: &Path) -> Result<Self, IdentityError> {
        let read = |name: &str| {
            let path = dir.join(name);
            read_small(&path).map_err(|error| IdentityError::file(&path, error))
        };
        let (chain, roots) = (read(CERT_FILE)?, read(ROOTS_FILE)?);
        let with_key = |name: &str| Self::from_pem(&chain, &read(name)?, &roots);
        let first = match with_key(KEY_FILE) {
            Ok(identity) => return Ok(identity),
            Err(error) => error,
        };
        // What matters to the reader is what is wrong with `key.pem`, not with a leftover.
        let identity = with_key(NEXT_KEY_FILE).map_err(|_| first)?;
        put_key_in_place(dir)?;
        Ok(identity)
    }

    /// Whether a folder has an identity (perhaps a damaged one).
    #[must_use]
    pub fn exists(dir: &Path) -> bool {
        dir.join(CERT_FILE).exists()
    }

    /// Who this is.
    #[must_use]
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// When the certificate is good.
    #[must_use]
    pub fn validity(&self) -> Validity {
        self.validity
    }

    /// Whether it is time to renew: less than a third of the certificate's life is left.
    #[must_use]
    pub fn is_expiring(&self, now: UnixTime) -> bool {
        let (from, until) = (self.validity.not_before.as_secs(), self.validity.not_after.as_secs());
        now.as_secs() >= until.saturating_sub(until.saturating_sub(from) / 3)
    }

    /// Whether the certificate is no longer good.
    #[must_use]
    pub fn is_expired(&self, now: UnixTime) -> bool {
        now.as_secs() > self.validity.not_after.as_secs()
    }

    /// The certificates, the holder's first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The certificates in PEM, the holder's first.
    #[must_use]
    pub fn chain_pem(&self) -> &str {
        &self.chain_pem
    }

    /// The authorities that the holder trusts.
    #[must_use]
    pub fn roots(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// The authorities that the holder trusts, in PEM.
    #[must_use]
    pub fn roots_pem(&self) -> &str {
        &self.roots_pem
    }

    pub(crate) fn key(&self) -> &PrivateKeyDer<'static> {
        &self.key
    }

    pub(crate) fn certified(&self) -> &Arc<CertifiedKey> {
        &self.certified
    }
}

/// The authorities as rustls wants them.
pub(crate) fn root_store(roots: &[CertificateDer<'_>]) -> Result<RootCertStore, IdentityError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store
            .add(root.clone().into_owned())
            .map_err(|error| IdentityError::damaged("list of authorities", error.to_string()))?;
    }
    Ok(store)
}

/// Reads a file that must be small, as text.
pub(crate) fn read_small(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    let read = File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if read as u64 > FILE_BYTES_MAX {
        let reason = format!("file is larger than {FILE_BYTES_MAX} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
    }
    Ok(text)
}

/// Verifies a chain against authorities at a time, for use by a client (or signer).
pub(crate) fn verify_chain(
    chain: &[CertificateDer<'_>],
    roots: &[CertificateDer<'_>],
    now: UnixTime,
) -> Result<(), webpki::Error> {
    let anchors = roots
        .iter()
        .map(webpki::anchor_from_trusted_cert)
        .collect::<Result<Vec<TrustAnchor<'_>>, _>>()?;
    let (leaf, between) = chain.split_first().ok_or(webpki::Error::UnknownIssuer)?;
    webpki::EndEntityCert::try_from(leaf)?
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &anchors,
            between,
            now,
            webpki::KeyUsage::client_auth(),
            None,
            None,
        )
        .map(|_| ())
}

fn certified(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
    provider: &CryptoProvider,
) -> Result<CertifiedKey, IdentityError> {
    CertifiedKey::from_der(chain.to_vec(), key.clone_key(), provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => IdentityError::KeyMismatch,
        error => IdentityError::damaged("private key or certificate", error.to_string()),
    })
}

/// Webpki reads dates but does not show them, except in its refusals: asking about the first and
/// the last second there is gets both, and verifies the chain on the way.
fn validity_of(
    chain: &[CertificateDer<'_>],
    roots: &[CertificateDer<'_>],
) -> Result<Validity, IdentityError> {
    use std::time::Duration;
    let at = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
    let (first, last) = (at(0), at(u64::from(u32::MAX) * 64));
    let refused = |error: webpki::Error| IdentityError::Untrusted { reason: error.to_string() };
    let not_before = match verify_chain(chain, roots, first) {
        Err(webpki::Error::CertNotValidYet { not_before, .. }) => not_before,
        Ok(()) => first,
        Err(error) => return Err(refused(error)),
    };
    let not_after = match verify_chain(chain, roots, last) {
        Err(webpki::Error::CertExpired { not_after, .. }) => not_after,
        Ok(()) => last,
        Err(error) => return Err(refused(error)),
    };
    // The refusals above may come before the signature is looked at.
    match verify_chain(chain, roots, not_before) {
        Ok(()) => Ok(Validity { not_before, not_after }),
        Err(error) => Err(refused(error)),
    }
}

pub(crate) fn certificates(
    pem: &str,
    what: &'static str,
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let list = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| IdentityError::damaged(what, error.to_string()))?;
    match list.len() {
        0 => Err(IdentityError::damaged(what, "it holds no certificate".to_owned())),
        1..=CHAIN_MAX => Ok(list),
        many => Err(IdentityError::damaged(
            what,
            format!("it holds {many} certificates, at most {CHAIN_MAX} are read"),
        )),
    }
}

fn put_key_in_place(dir: &Path) -> Result<(), IdentityError> {
    let (next, path): (PathBuf, PathBuf) = (dir.join(NEXT_KEY_FILE), dir.join(KEY_FILE));
    fs::rename(&next, &path)
        .and_then(|()| sync_folder(&folder_of(&path)))
        .map_err(|error| IdentityError::file(&path, error))
}

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("identity's file {path} cannot be read or written")]
    File {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Part of it is not what it should be.
    #[error("identity's {what} is damaged: {reason}")]
    Damaged {
        /// Which part.
        what: &'static str,
        /// Why.
        reason: String,
    },
    /// Key and certificate are not a pair.
    #[error("identity's private key does not belong to its certificate")]
    KeyMismatch,
    /// The chain leads to none of the authorities.
    #[error("identity's certificate is not by a trusted authority: {reason}")]
    Untrusted {
        /// What the verifier said.
        reason: String,
    },
    /// The certificate names no peer.
    #[error("identity's certificate names nobody")]
    Peer(#[source] InvalidPeer),
    /// No key can be made.
    #[error("private key cannot be made")]
    MakeKey(#[source] rcgen::Error),
    /// No request can be made.
    #[error("identity request cannot be made")]
    Request(#[source] RequestError),
}

impl IdentityError {
    pub(crate) fn damaged(what: &'static str, reason: String) -> Self {
        Self::Damaged { what, reason }
    }

    fn file(path: &Path, source: io::Error) -> Self {
        Self::File { path: path.display().to_string(), source }
    }
}
