use super::RepositoryFile;

#[test]
fn files_are_told_by_their_paths() {
    let digest = "ab".repeat(32);
    let parsed = digest.parse().unwrap();
    let target = format!("targets/apps/web/1.0.0+b/linux~amd64/{digest}.manifest.json");
    for (path, file) in [
        (format!("blobs/{digest}"), RepositoryFile::Blob(digest.parse().unwrap())),
        (format!("blobs/{digest}.units"), RepositoryFile::Units(digest.parse().unwrap())),
        (target, RepositoryFile::Target(parsed)),
        ("metadata/root.json".to_owned(), RepositoryFile::Root(None)),
        ("metadata/2.root.json".to_owned(), RepositoryFile::Root(Some(2))),
        ("metadata/3.targets.json".to_owned(), RepositoryFile::Targets(3)),
        ("metadata/4.snapshot.json".to_owned(), RepositoryFile::Snapshot(4)),
        ("metadata/timestamp.json".to_owned(), RepositoryFile::Timestamp),
    ] {
        assert_eq!(RepositoryFile::of(&path), Some(file), "{path}");
    }
}

#[test]
fn nothing_else_is_a_file_of_a_repository() {
    let digest = "ab".repeat(32);
    for strange in [
        "",
        "/",
        "blobs",
        "blobs/",
        "blobs/key",
        "blobs/.1-1",
        "keys/timestamp.pem",
        "blobs/timestamp.pem",
        "repository.json",
        "metadata/.new",
        "metadata/notes.txt",
        "metadata/a/b.json",
        "metadata/x.root.json",
        "metadata/1.other.json",
        "metadata/../keys/a",
        "metadata/%2e%2e/keys/a",
        "metadata//timestamp.json",
        "metadata/a b",
        "targets/apps/web/manifest.json",
        "targets/../keys/root.pem",
        &format!("/blobs/{digest}"),
        &format!("blobs/{digest}/x"),
        &format!("targets/{}/{digest}.json", "a".repeat(2000)),
    ] {
        assert_eq!(RepositoryFile::of(strange), None, "{strange}");
    }
}

#[test]
fn only_what_is_named_by_its_hash_may_be_cached_for_ever() {
    let digest = "ab".repeat(32);
    for (path, immutable) in [
        (format!("blobs/{digest}"), true),
        (format!("blobs/{digest}.units"), true),
        (format!("targets/channels/web/{digest}.stable.json"), true),
        ("metadata/root.json".to_owned(), false),
        ("metadata/2.root.json".to_owned(), false),
        ("metadata/3.targets.json".to_owned(), false),
        ("metadata/4.snapshot.json".to_owned(), false),
        ("metadata/timestamp.json".to_owned(), false),
    ] {
        let control = RepositoryFile::of(&path).unwrap().cache_control();
        assert_eq!(control.contains("immutable"), immutable, "{path}: {control}");
        assert_eq!(control == "no-cache", !immutable, "{path}: {control}");
    }
}
