//! Keys under a passphrase: PKCS#8 with PBES2 (scrypt, AES-256-CBC), which `openssl pkey` reads.

use std::path::Path;

use aws_lc_rs::rand;
use pkcs8::EncryptedPrivateKeyInfoRef;
use pkcs8::der::asn1::OctetStringRef;
use pkcs8::der::{Decode as _, Encode as _};
use pkcs8::pkcs5::pbes2::Parameters;
use pkcs8::pkcs5::{EncryptionScheme, scrypt};

use super::KeyError;

/// Cost of a passphrase, as powers of two and factors: 16 MiB and a tenth of a second.
const SCRYPT: (u8, u32, u32) = (14, 8, 1);

pub(super) fn seal(pkcs8: &[u8], passphrase: &str) -> Result<Vec<u8>, KeyError> {
    let (mut salt, mut iv) = ([0; 16], [0; 16]);
    rand::fill(&mut salt).and_then(|()| rand::fill(&mut iv)).map_err(|_| KeyError::Generate)?;
    let (log_n, r, p) = SCRYPT;
    let sealed = || -> Result<Vec<u8>, pkcs8::Error> {
        let cost = scrypt::Params::new(log_n, r, p).expect("costs within the limits of scrypt");
        let parameters = Parameters::generate_scrypt_aes256cbc(cost, &salt, iv)?;
        let encrypted = parameters.encrypt(passphrase, pkcs8)?;
        let info = EncryptedPrivateKeyInfoRef {
            encryption_algorithm: EncryptionScheme::from(parameters),
            encrypted_data: <&OctetStringRef>::try_from(encrypted.as_slice())?,
        };
        Ok(info.to_der()?)
    };
    sealed().map_err(|_| KeyError::Generate)
}

pub(super) fn open(sealed: &[u8], passphrase: &str, path: &Path) -> Result<Vec<u8>, KeyError> {
    let malformed = |source: pkcs8::der::Error| KeyError::Malformed {
        path: path.to_owned(),
        source: source.into(),
    };
    let info = EncryptedPrivateKeyInfoRef::from_der(sealed).map_err(malformed)?;
    let opened = info.decrypt(passphrase);
    let opened = opened.map_err(|_| KeyError::WrongPassphrase { path: path.to_owned() })?;
    Ok(opened.as_bytes().to_vec())
}
