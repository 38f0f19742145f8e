//! Keys for what a hub proves to itself: derived from a private key, never stored.

use aws_lc_rs::hmac;
use hex::FromHex as _;

/// A secret that is derived from a private key, for one purpose. Who has the private key can derive
/// it again, also after everything else was lost.
#[derive(Debug)]
pub struct Secret(hmac::Key);

impl Secret {
    /// `private_key` is DER; different purposes have unrelated secrets.
    pub(crate) fn derive(private_key: &[u8], purpose: &str) -> Self {
        let master = hmac::Key::new(hmac::HMAC_SHA256, private_key);
        let derived = hmac::sign(&master, purpose.as_bytes());
        Secret(hmac::Key::new(hmac::HMAC_SHA256, derived.as_ref()))
    }

    /// Proof that the holder of this secret has said `text`: 64 hexadecimal digits.
    #[must_use]
    pub fn prove(&self, text: &str) -> String {
        hex::encode(hmac::sign(&self.0, text.as_bytes()).as_ref())
    }

    /// Whether [`prove`](Self::prove) made this proof of `text`. In constant time.
    #[must_use]
    pub fn proves(&self, text: &str, proof: &str) -> bool {
        let Ok(tag) = <[u8; 32]>::from_hex(proof) else { return false };
        hmac::verify(&self.0, text.as_bytes(), &tag).is_ok()
    }
}

#[cfg(test)]
mod secret_test {
    use super::*;

    #[test]
    fn only_the_same_key_and_purpose_prove_the_same_text() {
        let secret = Secret::derive(b"key", "revisions");
        let proof = secret.prove("7");
        assert!(Secret::derive(b"key", "revisions").proves("7", &proof));
        assert!(!secret.proves("8", &proof));
        for other in [Secret::derive(b"key", "else"), Secret::derive(b"other", "revisions")] {
            assert!(!other.proves("7", &proof));
        }
        for malformed in ["", "7", &proof[1..], &format!("{proof}0"), &"z".repeat(64)] {
            assert!(!secret.proves("7", malformed), "{malformed}");
        }
    }
}
