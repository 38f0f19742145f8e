//! Certificates, requests for them, and join tokens.

use std::path::PathBuf;
use std::sync::OnceLock;

use cohort_base::golden::round_trip;
use cohort_identity::{
    Authority, CertificateDer, Identity, IdentityRequest, JoinToken, Peer, TokenRecord, UnixTime,
    certified_by, peer_of,
};

use crate::script::Script;

/// When the golden identities were made, in Unix seconds.
pub(crate) const NOW_S: u64 = 1_800_000_000;

pub(crate) fn now() -> UnixTime {
    UnixTime::since_unix_epoch(std::time::Duration::from_secs(NOW_S))
}

fn golden(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "../identity/tests/golden", name].iter().collect()
}

pub(crate) fn authority() -> &'static Authority {
    static AUTHORITY: OnceLock<Authority> = OnceLock::new();
    AUTHORITY.get_or_init(|| Authority::open(&golden("authority")).expect("a golden authority"))
}

pub(crate) fn operator() -> &'static Identity {
    static OPERATOR: OnceLock<Identity> = OnceLock::new();
    OPERATOR.get_or_init(|| Identity::load(&golden("operator")).expect("a golden identity"))
}

/// A certificate of somebody: altered, or anything at all. Whom it names is one peer; no altered
/// one is part of an identity.
pub(crate) fn certificate(bytes: &[u8]) {
    let genuine = &operator().chain()[0];
    let mut script = Script::new(bytes);
    let der = if script.is_set() { script.patch(genuine) } else { script.rest().to_vec() };
    let chain = [CertificateDer::from(der)];
    let (peer, certified) = (peer_of(&chain), certified_by(&chain));
    if let Ok(certified) = certified {
        assert_eq!(Some(&certified.peer), peer.as_ref().ok());
        let name: Peer = certified.peer;
        assert_eq!(Peer::new(name.role, name.name.as_str()).as_ref(), Ok(&name));
    }
    let key = std::fs::read_to_string(golden("operator/key.pem")).expect("a golden key");
    let roots = std::fs::read_to_string(golden("operator/ca.pem")).expect("a golden authority");
    let text = String::from_utf8_lossy(bytes);
    for pem in [pem_of(&chain[0]), text.into_owned()] {
        if let Ok(identity) = Identity::from_pem(&pem, &key, &roots) {
            assert_eq!(&identity.chain()[0], genuine, "forged");
        }
    }
}

fn pem_of(certificate: &[u8]) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", certificate))
}

/// A request for a certificate: one that is accepted was made with the key that it names, and the
/// authority certifies it.
pub(crate) fn request(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(request) = IdentityRequest::from_text(text) else { return };
    let again = IdentityRequest::from_text(&request.to_text()).expect("what was written is read");
    assert_eq!(again.peer(), request.peer());
    assert_eq!(again.public_key(), request.public_key());
}

/// Join tokens, as people copy them, and the hub's records of them.
pub(crate) fn join_token(bytes: &[u8]) {
    round_trip::<TokenRecord>(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // With the check made right, the rest is reached.
    let checked = format!("{text}:{}", &cohort_identity::sha256_hex(text.as_bytes())[..8]);
    for text in [text, &checked] {
        let Ok(token) = text.parse::<JoinToken>() else { continue };
        let again: JoinToken = token.to_text().parse().expect("what was written is read");
        assert_eq!(again.to_text(), token.to_text());
    }
}
