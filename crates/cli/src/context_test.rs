use std::path::Path;

use cohort_base::golden::hold;

use super::{ContextFile, FILE, VERSION, default_hub_name, is_own};
use crate::failure::Exit;

#[test]
fn contexts_are_as_their_golden_file_says() {
    let small = ContextFile {
        version: VERSION,
        hub: Vec::new(),
        hub_name: default_hub_name(),
        identity: "identity".into(),
        keys: None,
        repository: None,
        mirrors: Vec::new(),
        trusted_root: None,
    };
    let full = ContextFile {
        hub: vec!["hub.example:7418".to_owned()],
        hub_name: "hub-2".to_owned(),
        keys: Some("keys".into()),
        repository: Some("repository".into()),
        mirrors: vec!["http://mirror:7419/".to_owned()],
        trusted_root: Some("root.json".into()),
        ..small.clone()
    };
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/context.jsonl");
    hold(&golden, &[small.clone(), full.clone()]);
    let dir = tempfile::tempdir().unwrap();
    for context in [small, full] {
        context.write(dir.path()).unwrap();
        assert_eq!(ContextFile::read(&dir.path().join(FILE)).unwrap(), context);
    }
}

#[test]
fn a_context_of_another_version_is_refused_whatever_its_keys() {
    let dir = tempfile::tempdir().unwrap();
    let read = |text: &str| {
        std::fs::write(dir.path().join(FILE), text).unwrap();
        ContextFile::read(&dir.path().join(FILE)).unwrap_err()
    };
    let newer = read("version = 2\nhubs = [\"hub:7418\"]\n");
    assert_eq!((newer.kind.as_str(), newer.exit), ("version", Exit::Usage));
    assert!(newer.error.contains(FILE) && newer.error.contains('2'), "{}", newer.error);
    let without = read("identity = \"identity\"\n");
    assert_eq!(without.kind, "malformed");
    assert!(without.error.contains("`version`"), "{}", without.error);
}

/// It could send commands to another hub, and name programs that sign.
#[test]
fn a_context_of_another_user_is_not_taken_because_it_is_here() {
    use std::fs::Permissions;
    use std::os::unix::fs::{PermissionsExt as _, chown};
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(FILE);
    assert!(!is_own(&file));
    std::fs::write(&file, "version = 1\n").unwrap();
    assert!(is_own(&file));
    for (path, mode, open) in [(file.clone(), 0o644, 0o664), (dir.path().into(), 0o755, 0o777)] {
        std::fs::set_permissions(&path, Permissions::from_mode(open)).unwrap();
        assert!(!is_own(&file), "{}", path.display());
        std::fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        assert!(is_own(&file));
    }
    std::os::unix::fs::symlink(&file, dir.path().join("link")).unwrap();
    assert!(!is_own(&dir.path().join("link")));
    // Only root can give files away.
    for others in [&file, &dir.path().to_owned()] {
        if chown(others, Some(12_345), None).is_ok() {
            assert!(!is_own(&file), "{}", others.display());
            chown(others, Some(0), None).unwrap();
        }
    }
}
