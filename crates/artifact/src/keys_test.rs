use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::{KeyError, KeyRole, Keys, SigningKey, no_passphrase};

#[test]
fn keys_are_private_files_and_are_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("keys");
    let keys = Keys::create(&dir, &dir, None).unwrap();
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(dir.clone()), 0o700);
    for role in KeyRole::ALL {
        assert_eq!(mode(Keys::path(&dir, role)), 0o600);
    }
    let again = Keys::load(&dir, &KeyRole::ALL, &no_passphrase).unwrap();
    for role in KeyRole::ALL {
        assert_eq!(again.of(role)[0].id(), keys.of(role)[0].id());
    }
    assert!(matches!(Keys::create(&dir, &dir, None), Err(KeyError::Exists { .. })));
    fs::remove_file(dir.join("root.pem")).unwrap();
    assert_eq!(Keys::load_to_publish(&dir, &no_passphrase).unwrap().targets.len(), 1);
    fs::remove_file(dir.join("targets.pem")).unwrap();
    let missing = Keys::load_to_publish(&dir, &no_passphrase).unwrap_err();
    assert!(missing.to_string().contains("targets.pem"), "{missing}");
}

#[test]
fn exposed_and_malformed_keys_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    let load = || SigningKey::load(&path, &no_passphrase);
    SigningKey::generate().unwrap().save(&path, None).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(load(), Err(KeyError::Exposed { mode: 0o640, .. })));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    for content in [
        "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        "public_key = \"ab\"\ncommand = [\"/bin/true\"]\n",
    ] {
        fs::write(&path, content).unwrap();
        let read = SigningKey::load(&path, &|_| Ok(Some("x".to_owned())));
        assert!(matches!(read, Err(KeyError::Malformed { .. })), "{read:?}");
    }
    let missing = SigningKey::load(&folder.path().join("missing.pem"), &no_passphrase);
    assert!(matches!(missing, Err(KeyError::File(_))));
    assert!(!format!("{:?}", Keys::generate().unwrap()).contains("pkcs8"));
}

#[test]
fn a_key_with_a_passphrase_is_nothing_without_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("root.pem");
    let key = SigningKey::generate().unwrap();
    key.save(&path, Some("open sesame")).unwrap();
    let asked = |answer: Option<&str>| {
        let answer = answer.map(str::to_owned);
        SigningKey::load(&path, &move |_| Ok(answer.clone()))
    };
    assert_eq!(asked(Some("open sesame")).unwrap().id(), key.id());
    assert!(matches!(asked(Some("open, sesame")), Err(KeyError::WrongPassphrase { .. })));
    assert!(matches!(asked(None), Err(KeyError::Locked { .. })));
    asked(Some("open sesame")).unwrap().set_passphrase(&path, None).unwrap();
    assert_eq!(asked(None).unwrap().id(), key.id());
}
