use super::*;

fn mode_of(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_file_is_replaced_with_the_mode_it_is_given_and_nothing_more() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record");
    // The effect of this process's umask on a mode.
    let plain = folder.path().join("plain");
    fs::write(&plain, "").unwrap();
    let allowed = mode_of(&plain) | 0o700;
    for (bytes, mode) in [("old", READABLE), ("new", SECRET), ("public", READABLE)] {
        write(&path, bytes.as_bytes(), mode).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), bytes);
        assert_eq!(mode_of(&path), mode & allowed);
    }
    fs::remove_file(plain).unwrap();
    assert_eq!(names(folder.path()), ["record"]);
}

/// The umask belongs to the whole process, so another umask needs another process: it runs this
/// test again, which sees its variable and writes.
#[test]
fn a_stricter_umask_is_kept() {
    const WRITES: &str = "COHORT_TEST_WRITES_UNDER_UMASK";
    if let Some(path) = std::env::var_os(WRITES) {
        return write(Path::new(&path), b"", READABLE).unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let test = std::env::current_exe().unwrap();
    for (umask, mode) in [("077", 0o600), ("027", 0o640), ("000", 0o644)] {
        let path = folder.path().join(umask);
        let name = "durable::durable_test::a_stricter_umask_is_kept";
        let script = format!("umask {umask}; exec \"$0\" --exact {name}");
        let mut shell = std::process::Command::new("sh");
        let ran = shell.args(["-c", &script]).arg(&test).env(WRITES, &path).output().unwrap();
        assert!(ran.status.success(), "{ran:?}");
        assert_eq!(mode_of(&path), mode, "umask {umask}");
    }
}

#[test]
fn a_private_folder_is_created_closed_and_an_open_one_is_closed() {
    let folder = tempfile::tempdir().unwrap();
    let (made, open) = (folder.path().join("a/made"), folder.path().join("open"));
    fs::create_dir(&open).unwrap();
    fs::set_permissions(&open, Permissions::from_mode(0o755)).unwrap();
    for path in [&made, &open, &open] {
        private_folder(path).unwrap();
        assert_eq!(mode_of(path), 0o700, "{}", path.display());
    }
    fs::write(folder.path().join("file"), "").unwrap();
    assert!(private_folder(&folder.path().join("file/below")).is_err());
}

#[test]
fn a_failed_write_leaves_the_old_file_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record");
    fs::create_dir(&path).unwrap();
    assert!(write(&path, b"new", READABLE).is_err());
    assert!(path.is_dir());
    assert_eq!(names(folder.path()), ["record"]);
    assert!(write(&folder.path().join("missing/record"), b"new", READABLE).is_err());
}

#[test]
fn leftovers_are_swept_for_one_file_or_for_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let leave = |name: &str| unfinished_for(&path(name)).unwrap().keep().unwrap();
    let ((_, _a), (_, b)) = (leave("a"), leave("ab"));
    write(&path("a"), b"", READABLE).unwrap();
    sweep_for(&path("a")).unwrap();
    assert_eq!(names(folder.path()), [b.file_name().unwrap().to_str().unwrap(), "a"]);
    fs::create_dir(path(".unfinished-folder")).unwrap();
    sweep(folder.path()).unwrap();
    assert_eq!(names(folder.path()), ["a"]);
    sweep(&path("missing")).unwrap();
}

#[test]
fn an_unfinished_file_vanishes_unless_it_is_put_in_place() {
    let folder = tempfile::tempdir().unwrap();
    drop(unfinished(folder.path()).unwrap());
    let file = unfinished(folder.path()).unwrap();
    put_in_place(file, &folder.path().join("kept"), READABLE).unwrap();
    rename(&folder.path().join("kept"), &folder.path().join("renamed")).unwrap();
    assert_eq!(names(folder.path()), ["renamed"]);
}

#[test]
fn missing_folders_are_created_and_a_bare_name_is_in_the_current_one() {
    let folder = tempfile::tempdir().unwrap();
    let deep = folder.path().join("a/b/c");
    create_folders(&deep).unwrap();
    create_folders(&deep).unwrap();
    assert!(deep.is_dir());
    assert_eq!(folder_of(Path::new("name")), Path::new("."));
    assert_eq!(folder_of(Path::new("/a/name")), Path::new("/a"));
}
