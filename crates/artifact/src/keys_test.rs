use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::{KeyError, Keys, SigningKey};

#[test]
fn keys_are_private_files_and_are_never_overwritten() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("keys");
    let keys = Keys::create(&dir).unwrap();
    let mode = |path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(dir.clone()), 0o700);
    for role in ["root", "targets", "snapshot", "timestamp"] {
        assert_eq!(mode(dir.join(format!("{role}.pem"))), 0o600);
    }
    let again = Keys::load(&dir).unwrap();
    assert_eq!(again.targets.public(), keys.targets.public());
    assert!(matches!(Keys::create(&dir), Err(KeyError::Exists { .. })));
    fs::remove_file(dir.join("root.pem")).unwrap();
    assert!(Keys::load(&dir).unwrap().root.is_none(), "publishing needs no root key");
}

#[test]
fn exposed_and_malformed_keys_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("key.pem");
    SigningKey::generate().unwrap().save(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(matches!(SigningKey::load(&path), Err(KeyError::Exposed { mode: 0o640, .. })));
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&path, "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").unwrap();
    assert!(matches!(SigningKey::load(&path), Err(KeyError::Malformed { .. })));
    let missing = folder.path().join("missing.pem");
    assert!(matches!(SigningKey::load(&missing), Err(KeyError::File(_))));
    assert!(!format!("{:?}", Keys::generate().unwrap()).contains("pkcs8"));
}
