use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use super::ProgramError;
use crate::keys::{KeyError, SigningKey, no_passphrase};

/// A key whose program is this shell script.
fn key(folder: &Path, script: &str) -> SigningKey {
    let path = folder.join("targets.toml");
    let public = SigningKey::generate().unwrap();
    let tough::schema::key::Key::Ed25519 { keyval, .. } = public.public() else { panic!() };
    let public = hex::encode(&*keyval.public);
    let text = format!(
        "public_key = \"{public}\"\ntimeout_s = 1\n\
         command = [\"/bin/sh\", \"-c\", '''{script}''']\n"
    );
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    SigningKey::load(&path, &no_passphrase).unwrap()
}

async fn refusal(script: &str) -> ProgramError {
    let folder = tempfile::tempdir().unwrap();
    let signed = key(folder.path(), script).sign(&[7; 100_000]).await;
    let Err(KeyError::Program { source, .. }) = signed else { panic!("{script}: signed") };
    source
}

#[tokio::test]
async fn a_program_that_does_not_sign_signs_nothing() {
    let wrong = |error| matches!(error, ProgramError::WrongSignature { .. });
    assert!(wrong(refusal("head -c 64 /dev/zero").await));
    assert!(wrong(refusal("cat > /dev/null").await), "no signature at all");
    let failed = refusal("cat > /dev/null; exit 3").await;
    assert!(matches!(failed, ProgramError::Failed { .. }), "{failed}");
    let silent = refusal("exec sleep 600").await;
    assert!(matches!(silent, ProgramError::Silent { seconds: 1, .. }), "{silent}");
    let endless = refusal("exec cat /dev/zero").await;
    assert!(!matches!(endless, ProgramError::Silent { .. }), "ended by the limit: {endless}");
}

#[test]
fn a_program_is_named_by_a_whole_path_and_has_a_limit() {
    let parsed = |command: &str| {
        let public = "ab".repeat(32);
        let text = format!("public_key = \"{public}\"\n{command}\n");
        super::Program::parse(text.as_bytes()).map(|_| ())
    };
    assert!(parsed("command = [\"/bin/true\"]").is_ok());
    assert!(parsed("command = [\"true\"]").is_err());
    assert!(parsed("command = []").is_err());
    assert!(parsed("command = [\"/bin/true\"]\ntimeout_s = 0").is_err());
    assert!(parsed("command = [\"/bin/true\"]\ntimeout_s = 601").is_err());
    assert!(parsed("command = [\"/bin/true\"]\nshell = true").is_err());
}

#[test]
fn public_keys_are_read_as_openssl_writes_them() {
    let ed25519 = "-----BEGIN PUBLIC KEY-----\n\
        MCowBQYDK2VwAyEAGb9ECWmEzf6FQbrBZ9w7lshQhqowtrbLDFw4rXAxZuE=\n\
        -----END PUBLIC KEY-----\n";
    let key = super::parse_public(ed25519.trim()).unwrap();
    assert!(matches!(key, tough::schema::key::Key::Ed25519 { .. }));
    assert!(super::parse_public("-----BEGIN PUBLIC KEY-----").is_err());
}
