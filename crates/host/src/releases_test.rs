use super::*;
use crate::testing::{golden, release_of};

fn marker() -> Marker {
    let service_file = Some("[service]\ncommand = [\"./run\"]\n".to_owned());
    Marker { schema: MARKER_SCHEMA, release: release_of("2.0.0"), service_file }
}

#[test]
fn the_marker() {
    let without = Marker { service_file: None, ..marker() };
    cohort_base::golden::hold(&golden("marker.jsonl"), &[marker(), without]);
}

#[test]
fn a_folder_with_a_marker_of_another_schema_is_not_whole() {
    let folder = tempfile::tempdir().unwrap();
    write_marker(folder.path(), &marker()).unwrap();
    assert_eq!(read_marker(folder.path()), Some(marker()));
    let path = folder.path().join(MARKER);
    let later = fs::read_to_string(&path).unwrap().replacen(":2,", ":3,", 1);
    fs::write(path, later).unwrap();
    assert_eq!(read_marker(folder.path()), None);
}

/// What a marker must not be: a link to a file of root's, a pipe, somebody else's, endless.
#[test]
fn a_marker_is_a_file_of_the_agents_own() {
    let folder = tempfile::tempdir().unwrap();
    let (path, elsewhere) = (folder.path().join(MARKER), folder.path().join("elsewhere"));
    write_marker(folder.path(), &marker()).unwrap();
    fs::rename(&path, &elsewhere).unwrap();
    symlink(&elsewhere, &path).unwrap();
    assert_eq!(read_marker(folder.path()), None, "a link");
    for special in ["/dev/zero", "/dev/stdin"] {
        fs::remove_file(&path).unwrap();
        symlink(special, &path).unwrap();
        assert_eq!(read_marker(folder.path()), None, "{special}");
    }
    fs::remove_file(&path).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    assert_eq!(read_marker(folder.path()), None, "a pipe that nobody writes into");
    if own_user() == 0 {
        fs::remove_file(&path).unwrap();
        fs::rename(&elsewhere, &path).unwrap();
        std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
        assert_eq!(read_marker(folder.path()), None, "somebody else's");
    }
}

#[test]
fn another_service_user_can_read_what_was_unpacked_before() {
    if own_user() != 0 {
        return;
    }
    let folder = tempfile::tempdir_in("/var/tmp").unwrap();
    let install_dir = folder.path().join("web");
    let releases = Releases::open(&install_dir).unwrap();
    let release = releases.path_of(&release_of("2.0.0"));
    fs::create_dir_all(release.join("bin")).unwrap();
    let (private, link) = (release.join("bin/run"), release.join("link"));
    fs::write(&private, "#!/bin/sh").unwrap();
    fs::set_permissions(&private, fs::Permissions::from_mode(0o700)).unwrap();
    let outside = folder.path().join("outside");
    fs::write(&outside, "").unwrap();
    symlink(&outside, &link).unwrap();
    write_marker(&release, &marker()).unwrap();
    for gid in [65_534, 12_345] {
        releases.open_to(RunAs { uid: 1, gid }).unwrap();
        let run = fs::metadata(&private).unwrap();
        assert_eq!((run.uid(), run.gid(), run.mode() & 0o777), (0, gid, 0o750));
        assert_eq!(fs::metadata(release.join(MARKER)).unwrap().gid(), gid);
        assert_eq!(fs::metadata(&outside).unwrap().gid(), 0, "a link is not followed");
    }
    assert_eq!(read_marker(&release), Some(marker()));
}
