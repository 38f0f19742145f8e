use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use proptest::prelude::{ProptestConfig, any, proptest};

use cohort_base::archive::Lost;
use tar::{Builder, EntryType};

use super::{PackError, header, inspect_tarball, pack_folder};
use crate::manifest::Format;

fn fill(folder: &Path, names: &[&str]) {
    for name in names {
        let path = folder.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, format!("content of {name}")).unwrap();
    }
    fs::set_permissions(folder.join("bin/run"), fs::Permissions::from_mode(0o775)).unwrap();
    symlink("../bin/run", folder.join("lib/link")).unwrap();
}

fn pack(folder: &Path) -> Result<Vec<u8>, PackError> {
    let mut bytes = Vec::new();
    pack_folder(folder, &mut bytes).map(|_| bytes)
}

fn inspect(bytes: &[u8]) -> Result<super::Inspection, PackError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("artifact");
    fs::write(&path, bytes).unwrap();
    inspect_tarball(&path)
}

#[test]
fn equal_folders_give_equal_bytes() {
    let long = format!("lib/{}", "long-name-".repeat(20));
    let names = ["bin/run", "cohort.toml", "lib/a", "lib/b", "z", long.as_str()];
    let mut backwards = names;
    backwards.reverse();
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fill(one.path(), &names);
    fill(two.path(), &backwards);
    fs::set_permissions(two.path().join("z"), fs::Permissions::from_mode(0o664)).unwrap();
    for folder in [one.path(), two.path()] {
        fs::set_permissions(folder.join("lib/a"), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let bytes = pack(one.path()).unwrap();
    assert_eq!(bytes, pack(two.path()).unwrap());

    let found = inspect(&bytes).unwrap();
    assert_eq!(found.format, Format::TarZst);
    assert_eq!(found.entries, 9, "6 files, 2 folders, a link");
    assert_eq!(found.package_file.as_deref(), Some(b"content of cohort.toml".as_slice()));

    let plain = zstd::decode_all(bytes.as_slice()).unwrap();
    let mut archive = tar::Archive::new(plain.as_slice());
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let path = entry.path().unwrap().into_owned();
        let header = entry.header();
        assert_eq!((header.mtime().unwrap(), header.uid().unwrap()), (0, 0));
        match path.to_str().unwrap() {
            "bin/run" => assert_eq!(header.mode().unwrap(), 0o755),
            "z" => assert_eq!(header.mode().unwrap(), 0o644),
            "lib/a" => assert_eq!(header.mode().unwrap(), 0o600, "a key stays private"),
            "lib/link" => {
                assert_eq!(entry.link_name().unwrap().unwrap(), Path::new("../bin/run"));
            }
            _ => {}
        }
    }
    assert_eq!(inspect(&plain).unwrap().format, Format::Tar);
}

#[test]
fn what_no_host_would_unpack_is_refused() {
    let refused = |make: &dyn Fn(&Path)| {
        let folder = tempfile::tempdir().unwrap();
        make(folder.path());
        pack(folder.path()).unwrap_err()
    };
    let entry = |make: &dyn Fn(&Path)| match refused(make) {
        PackError::Entry { path, .. } => path,
        error => panic!("{error}"),
    };
    for target in ["/etc/passwd", "../x"] {
        let path = entry(&|dir| symlink(target, dir.join("link")).unwrap());
        assert_eq!(path, Path::new("link"), "to {target}");
    }
    let socket = |dir: &Path| {
        std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
    };
    assert_eq!(entry(&socket), Path::new("socket"));
    assert!(matches!(refused(&|_| {}), PackError::Empty { .. }));
}

#[test]
fn a_tarball_that_leaves_its_folder_is_refused() {
    let tarball = |name: &str, kind: tar::EntryType, link: &str| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.as_gnu_mut().unwrap().linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_cksum();
        builder.append(&header, std::io::empty()).unwrap();
        builder.into_inner().unwrap()
    };
    use tar::EntryType;
    for (name, kind, link) in [
        ("../x", EntryType::Regular, ""),
        ("/x", EntryType::Regular, ""),
        ("a/../../x", EntryType::Regular, ""),
        ("x", EntryType::Symlink, "../y"),
        ("x", EntryType::Symlink, "/y"),
        ("x", EntryType::Link, "../y"),
        ("x", EntryType::Char, ""),
        ("x", EntryType::Fifo, ""),
        ("x", EntryType::Symlink, ""),
        ("x", EntryType::Link, "absent"),
        (".cohort-release.json", EntryType::Regular, ""),
        ("cohort.toml", EntryType::Directory, ""),
    ] {
        let error = inspect(&tarball(name, kind, link)).unwrap_err();
        assert!(matches!(error, PackError::Entry { .. }), "{name} {kind:?} {link}: {error}");
    }
    assert!(inspect(&tarball("./a/x", EntryType::Symlink, "../y")).is_ok());
    assert!(matches!(inspect(b"no tarball at all"), Err(PackError::NotATarball { .. })));
    assert!(matches!(inspect(&[0x1f, 0x8b, 0, 0, 1]), Err(PackError::NotATarball { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn damage_anywhere_is_an_error_or_harmless_but_never_a_panic(
        at in 0_usize..3000, byte in any::<u8>(), cut in 0_usize..3000,
    ) {
        let mut builder = tar::Builder::new(Vec::new());
        for name in ["a", "b"] {
            let mut header = tar::Header::new_gnu();
            header.set_size(100);
            builder.append_data(&mut header, name, [7_u8; 100].as_slice()).unwrap();
        }
        let plain = builder.into_inner().unwrap();
        let packed = zstd::encode_all(plain.as_slice(), 1).unwrap();
        for mut bytes in [plain, packed] {
            let place = at % bytes.len();
            bytes[place] = byte;
            bytes.truncate(bytes.len() - cut % bytes.len());
            let _ = inspect(&bytes);
        }
    }
}

#[test]
fn what_a_file_loses_is_told_from_a_directory_and_from_a_tarball() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("su");
    fs::write(&path, "x").unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4755)).unwrap();
    fs::write(folder.path().join("plain"), "x").unwrap();
    let lost = pack_folder(folder.path(), &mut Vec::new()).unwrap();
    assert_eq!(lost, [(PathBuf::from("su"), Lost::SetId)]);

    let tarball = folder.path().join("release.tar");
    let mut tar = Builder::new(File::create(&tarball).unwrap());
    let mut set_id = header(EntryType::Regular, 0o4755, 0);
    tar.append_data(&mut set_id, "su", io::empty()).unwrap();
    tar.append_pax_extensions([("SCHILY.xattr.security.capability", &b"1"[..])]).unwrap();
    tar.append_data(&mut header(EntryType::Regular, 0o755, 0), "web", io::empty()).unwrap();
    tar.append_data(&mut header(EntryType::Regular, 0o755, 0), "plain", io::empty()).unwrap();
    tar.into_inner().unwrap();
    let lost = inspect_tarball(&tarball).unwrap().contents;
    let expected = [("su", Lost::SetId), ("web", Lost::Capabilities)];
    assert_eq!(lost.lost(), expected.map(|(path, lost)| (PathBuf::from(path), lost)));
}

#[test]
fn other_archives_are_named_and_no_content_is_quoted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("file");
    let inspect = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        inspect_tarball(&path).unwrap_err()
    };
    for magic in
        [&b"PK\x03\x04rest"[..], b"!<arch>\ndebian-binary   0", b"\xed\xab\xee\xdb\x03\x00"]
    {
        assert!(matches!(inspect(magic), PackError::OtherArchive { .. }), "{magic:?}");
    }
    let text = inspect("a secret line\n".repeat(100).as_bytes());
    let said = cohort_base::chain(&text);
    assert!(matches!(text, PackError::NotATarball { .. }) && !said.contains("secret"), "{said}");
}
