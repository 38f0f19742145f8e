use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use cohort_base::archive::{EntryError, MARKER, Refused};
use cohort_base::durable::UNFINISHED_PREFIX;
use cohort_core::release::Release;
use cohort_core::report::Blame;
use tar::{Builder, EntryType, Header};
use tempfile::TempDir;

use super::{UnpackError, unpack};
use crate::releases::Releases;
use crate::testing::{put, tar_of};

/// An archive with entries that no sane tool would write.
struct Evil(Builder<Vec<u8>>);

impl Evil {
    fn new() -> Self {
        Evil(Builder::new(Vec::new()))
    }

    fn entry(mut self, kind: EntryType, path: &str, link: &str, bytes: &[u8]) -> Self {
        let mut header = Header::new_gnu();
        let raw = header.as_gnu_mut().unwrap();
        raw.name[..path.len()].copy_from_slice(path.as_bytes());
        raw.linkname[..link.len()].copy_from_slice(link.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o6777);
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        self.0.append(&header, bytes).unwrap();
        self
    }

    fn file(self, path: &str) -> Self {
        self.entry(EntryType::Regular, path, "", b"x")
    }

    fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, target, b"")
    }

    fn bytes(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }
}

fn try_unpack(bytes: &[u8]) -> (TempDir, Result<Option<String>, UnpackError>) {
    try_as_signed(bytes, (64 << 30, 250_000))
}

/// `signed`: bytes and entries by the manifest.
fn try_as_signed(
    bytes: &[u8],
    signed: (u64, u32),
) -> (TempDir, Result<Option<String>, UnpackError>) {
    let folder = tempfile::tempdir().unwrap();
    let (unpacked_bytes, entries) = signed;
    let release = Release { unpacked_bytes, entries, ..put(folder.path(), "1.0.0", bytes) };
    let artifact = folder.path().join("artifacts").join(release.artifact.as_str());
    fs::write(folder.path().join("outside"), "outside").unwrap();
    let part = folder.path().join("inside");
    let result = unpack(&artifact, &release, &part, None);
    (folder, result)
}

/// Checks that it is refused for this reason, blamed on the release, and nothing outside is
/// touched.
fn refused(evil: Evil, why: &EntryError) {
    let (folder, result) = try_unpack(&evil.bytes());
    let error = result.unwrap_err();
    assert_eq!(reason(&error), Some(why), "{error}");
    assert_eq!(error.blame(), Blame::Release);
    let mut names: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["artifacts", "inside", "outside"]);
    let mode = folder.path().join("inside").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "closed to the owner until it is whole");
    assert_eq!(fs::read_to_string(folder.path().join("outside")).unwrap(), "outside");
}

fn reason(error: &UnpackError) -> Option<&EntryError> {
    match error {
        UnpackError::Refused(Refused::Entry { source, .. }) => Some(source),
        _ => None,
    }
}

#[test]
fn plain_gzip_and_zstd_are_told_apart_by_their_first_bytes() {
    let tar = tar_of(&[("bin/run", 0o755, "#!/bin/sh"), ("./cohort.toml", 0o600, "")]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let zstd = zstd::encode_all(tar.as_slice(), 1).unwrap();
    for bytes in [tar, gzip.finish().unwrap(), zstd] {
        let (folder, result) = try_unpack(&bytes);
        result.unwrap();
        let run = folder.path().join("inside/bin/run");
        assert_eq!(fs::read_to_string(&run).unwrap(), "#!/bin/sh");
        let mode = folder.path().join("inside").metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o755, "closed only while it is unpacked");
        assert_eq!(run.metadata().unwrap().permissions().mode() & 0o7777, 0o755);
        assert!(folder.path().join("inside/cohort.toml").exists());
    }
}

#[test]
fn long_names_of_both_kinds_are_understood() {
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(120));
    let (folder, result) = try_unpack(&tar_of(&[(&long, 0o644, "gnu")]));
    result.unwrap();
    assert_eq!(fs::read_to_string(folder.path().join("inside").join(&long)).unwrap(), "gnu");

    let mut tar = Builder::new(Vec::new());
    tar.append_pax_extensions([("path", long.as_bytes())]).unwrap();
    let mut header = Header::new_ustar();
    header.set_size(3);
    header.set_mode(0o644);
    header.set_cksum();
    tar.append(&header, &b"pax"[..]).unwrap();
    let (folder, result) = try_unpack(&tar.into_inner().unwrap());
    result.unwrap();
    assert_eq!(fs::read_to_string(folder.path().join("inside").join(&long)).unwrap(), "pax");
}

#[test]
fn permissions_are_masked() {
    let (folder, result) = try_unpack(&Evil::new().file("f").bytes());
    result.unwrap();
    let mode = folder.path().join("inside/f").metadata().unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o755, "no setuid, no setgid, not writable by others");
}

#[test]
fn absolute_names_are_refused() {
    refused(Evil::new().file("/etc/evil"), &EntryError::Absolute);
}

#[test]
fn parents_are_refused() {
    refused(Evil::new().file("../outside"), &EntryError::Parent);
    refused(Evil::new().file("a/../../outside"), &EntryError::Parent);
    refused(Evil::new().entry(EntryType::Directory, "..", "", b""), &EntryError::Parent);
}

#[test]
fn links_out_are_refused() {
    refused(Evil::new().symlink("a", "/etc/passwd"), &EntryError::LinkAbsolute);
    refused(Evil::new().symlink("a", "../outside"), &EntryError::LinkOut);
    refused(Evil::new().symlink("a/b", "../../outside"), &EntryError::LinkOut);
    refused(Evil::new().symlink("a", "b/../../outside"), &EntryError::LinkOut);
}

#[test]
fn links_out_through_other_links_are_refused() {
    // Judging by the text, both stay inside.
    let chained = Evil::new().symlink("a/b/c", "../..").symlink("a/b/out", "c/../outside");
    refused(chained, &EntryError::LinkOut);
    // In either order.
    let chained = Evil::new().symlink("a/b/out", "c/../outside").symlink("a/b/c", "../..");
    refused(chained, &EntryError::LinkOut);
    refused(Evil::new().symlink("a", "b").symlink("b", "a"), &EntryError::LinkLoop);
}

#[test]
fn nothing_is_written_through_a_link() {
    refused(Evil::new().symlink("a", "b").file("a/f"), &EntryError::NotThroughFolders);
    refused(
        Evil::new().symlink("a", ".").entry(EntryType::Directory, "a/d", "", b""),
        &EntryError::NotThroughFolders,
    );
}

#[test]
fn hard_links_out_are_refused() {
    let link = |path, target| Evil::new().file("f").entry(EntryType::Link, path, target, b"");
    refused(link("a", "/etc/passwd"), &EntryError::Absolute);
    refused(link("a", "../outside"), &EntryError::Parent);
    refused(link("a", "outside"), &EntryError::HardLink);
    let to_link = Evil::new().symlink("s", "f").entry(EntryType::Link, "a", "s", b"");
    refused(to_link, &EntryError::HardLink);
    let (folder, result) = try_unpack(&link("a", "./f").bytes());
    result.unwrap();
    assert_eq!(fs::read_to_string(folder.path().join("inside/a")).unwrap(), "x");
}

#[test]
fn devices_and_pipes_are_refused() {
    for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo, EntryType::GNUSparse] {
        refused(Evil::new().entry(kind, "a", "", b""), &EntryError::Kind);
    }
}

#[test]
fn what_comes_twice_is_refused() {
    refused(Evil::new().file("a").file("a"), &EntryError::Twice);
    refused(Evil::new().file("a").symlink("a", "b"), &EntryError::Twice);
    refused(Evil::new().symlink("a", "b").file("./a"), &EntryError::Twice);
    let folder_to_link = Evil::new().entry(EntryType::Directory, "d", "", b"").symlink("d", "e");
    refused(folder_to_link, &EntryError::Twice);
    let replaced = Evil::new().file("f").file("a").entry(EntryType::Link, "a", "f", b"");
    refused(replaced, &EntryError::Twice);
    refused(Evil::new().file("a").file("a/b"), &EntryError::NotThroughFolders);
}

#[test]
fn long_and_deep_names_are_refused() {
    let deep = tar_of(&[(&"d/".repeat(65), 0o644, "")]);
    let long = tar_of(&[(&format!("{}f", "dddd/".repeat(250)), 0o644, "")]);
    for (bytes, why) in [(deep, EntryError::Deep), (long, EntryError::LongPath)] {
        let (_folder, result) = try_unpack(&bytes);
        assert_eq!(reason(&result.unwrap_err()), Some(&why));
    }
    // A name that would fill the memory: the header claims 1 GiB of it.
    let mut header = Header::new_gnu();
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(1 << 30);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend([b'a'; 4096]);
    let (_folder, result) = try_unpack(&bytes);
    assert_eq!(reason(&result.unwrap_err()), Some(&EntryError::LongExtension));
}

/// The artifact's digest is the signed one: its publisher signed less than it holds.
#[test]
fn no_more_is_unpacked_than_the_manifest_says() {
    let (half, x) = ("0".repeat(1 << 19), "x");
    let tar = tar_of(&[("a", 0o644, &half), ("b", 0o644, &half), ("c", 0o644, x)]);
    let bytes = zstd::encode_all(&tar[..], 1).unwrap();
    let whole = (1 << 20) + 1;
    assert!(try_as_signed(&bytes, (whole, 3)).1.is_ok());
    let (folder, result) = try_as_signed(&bytes, (whole - 1, 3));
    let error = result.unwrap_err();
    let (UnpackError::Refused(Refused::TooManyBytes(signed)), blame) = (&error, error.blame())
    else {
        panic!("{error}");
    };
    assert_eq!((*signed, blame), (whole - 1, Blame::Release));
    assert!(!folder.path().join("inside/c").exists(), "it is not even begun");
    let result = try_as_signed(&bytes, (whole, 2)).1;
    assert!(matches!(result, Err(UnpackError::Refused(Refused::TooManyEntries(2)))), "{result:?}");
    let result = try_as_signed(&bytes, (u64::MAX, u32::MAX)).1;
    assert!(result.is_ok(), "the limits of every artifact hold, whatever is signed: {result:?}");
}

#[test]
fn garbage_and_half_archives_are_refused() {
    let whole = tar_of(&[("a", 0o644, &"a".repeat(5000))]);
    for bytes in [&b"hello"[..], &[0; 1024], &whole[..2000], &[0x28, 0xb5, 0x2f, 0xfd, 1, 2]] {
        let (_folder, result) = try_unpack(bytes);
        assert_eq!(result.unwrap_err().blame(), Blame::Release);
    }
}

#[test]
fn interrupted_unpacking_is_swept_and_repeated() {
    let folder = tempfile::tempdir().unwrap();
    let release = put(folder.path(), "1.0.0", &tar_of(&[("a", 0o644, "a")]));
    let artifact = folder.path().join("artifacts").join(release.artifact.as_str());
    let web = folder.path().join("web");
    let releases = Releases::open(&web).unwrap();
    let part = releases.path_of(&release).with_file_name(format!(
        "{UNFINISHED_PREFIX}{}",
        releases.path_of(&release).file_name().unwrap().to_str().unwrap()
    ));
    fs::create_dir(&part).unwrap();
    fs::write(part.join("half"), "").unwrap();
    let unpack = |releases: &Releases| releases.unpack(&artifact, &release, None).unwrap();
    unpack(&releases);
    let path = releases.path_of(&release);
    assert!(!path.join("half").exists() && path.join("a").exists());
    unpack(&releases);

    // An incomplete directory of that name is not taken for a release.
    fs::remove_file(path.join(MARKER)).unwrap();
    assert!(!releases.has(&release));
    unpack(&releases);
    assert!(releases.has(&release));

    fs::create_dir(&part).unwrap();
    Releases::open(&web).unwrap();
    assert!(!part.exists(), "removed at the next start");
}

#[test]
fn the_marker_cannot_be_forged() {
    refused(Evil::new().file(MARKER), &EntryError::Reserved);
    refused(Evil::new().file(&format!("{MARKER}/x")), &EntryError::Reserved);
    refused(Evil::new().file("cohort.toml/x"), &EntryError::Reserved);
}

#[test]
fn cohort_toml_is_read_from_the_verified_bytes() {
    let (_folder, result) = try_unpack(&tar_of(&[("./cohort.toml", 0o600, "[hooks]")]));
    assert_eq!(result.unwrap().as_deref(), Some("[hooks]"));
    let (_folder, result) = try_unpack(&tar_of(&[("run", 0o755, "")]));
    assert_eq!(result.unwrap(), None);
    let file = |bytes: &[u8]| Evil::new().entry(EntryType::Regular, "cohort.toml", "", bytes);
    let refused_file = |evil| refused(evil, &EntryError::ServiceFile);
    refused_file(Evil::new().symlink("cohort.toml", "other"));
    refused_file(Evil::new().file("f").entry(EntryType::Link, "cohort.toml", "f", b""));
    refused_file(Evil::new().entry(EntryType::Directory, "cohort.toml", "", b""));
    refused_file(file(&[b' '; 256 * 1024 + 1]));
    let (_folder, result) = try_unpack(&file(&[0xff]).bytes());
    assert!(matches!(result, Err(UnpackError::NotText(_))));
}

/// The service reads what its release keeps from others, and changes nothing.
#[test]
fn a_release_belongs_to_the_agent_and_its_service_may_read_it() {
    let me = rustix::process::geteuid().as_raw();
    let gid = if me == 0 { 12_345 } else { rustix::process::getegid().as_raw() };
    let bytes = tar_of(&[("key", 0o600, "secret"), ("d/tool", 0o700, ""), ("open", 0o644, "")]);
    let folder = tempfile::tempdir().unwrap();
    let release = put(folder.path(), "1.0.0", &bytes);
    let artifact = folder.path().join("artifacts").join(release.artifact.as_str());
    let part = folder.path().join("inside");
    let reader = Some(crate::program::RunAs { uid: 12_345, gid });
    unpack(&artifact, &release, &part, reader).unwrap();
    for (name, mode) in [("key", 0o640), ("d/tool", 0o750), ("open", 0o644)] {
        let metadata = part.join(name).metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (me, gid), "{name}");
        assert_eq!(metadata.mode() & 0o7777, mode, "{name}");
    }
    for name in ["", "d"] {
        let metadata = part.join(name).metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.mode() & 0o7777), (me, 0o755), "{name}");
    }
}

/// An attack: a program that can write to the directory swaps a part of the path for a link while
/// the archive is unpacked.
#[test]
fn no_path_leads_through_a_link_that_was_put_there_meanwhile() {
    let root = tempfile::tempdir().unwrap();
    let (part, outside) = (root.path().join("part"), root.path().join("outside"));
    let inside = crate::inside::Inside::create(&part).unwrap();
    fs::create_dir(&outside).unwrap();
    inside.folder(Path::new("bin")).unwrap();
    fs::rename(part.join("bin"), part.join("was")).unwrap();
    std::os::unix::fs::symlink(&outside, part.join("bin")).unwrap();
    inside.file(Path::new("bin/f")).unwrap_err();
    inside.folder(Path::new("bin/d")).unwrap_err();
    inside.symlink(Path::new("f"), Path::new("bin/l")).unwrap_err();
    inside.file(Path::new("was/f")).unwrap();
    inside.hard_link(Path::new("was/f"), Path::new("bin/h")).unwrap_err();
    inside.sync(Path::new("bin")).unwrap_err();
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    // The directory itself may be moved away: its descriptor stays.
    fs::rename(&part, root.path().join("moved")).unwrap();
    std::os::unix::fs::symlink(&outside, &part).unwrap();
    inside.file(Path::new("g")).unwrap();
    assert!(root.path().join("moved/g").exists());
}

/// A few entries with colliding names, and links that try to escape.
fn entries() -> impl proptest::strategy::Strategy<Value = Vec<(u8, String, String)>> {
    use proptest::collection::vec;
    use proptest::prelude::any;
    let path = "(a|b|c)(/(a|b|c)){0,3}";
    let link = "(a|b|c|\\.|\\.\\.)(/(a|b|c|\\.|\\.\\.)){0,4}";
    vec((any::<u8>(), path, link), 1..8)
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig::with_cases(500))]
    #[test]
    fn whatever_is_unpacked_stays_inside(entries in entries()) {
        let mut evil = Evil::new();
        for (kind, path, link) in &entries {
            let kinds =
                [EntryType::Regular, EntryType::Directory, EntryType::Symlink, EntryType::Link];
            let kind = kinds[usize::from(kind % 4)];
            let bytes: &[u8] = if kind == EntryType::Regular { b"evil" } else { b"" };
            evil = evil.entry(kind, path, link, bytes);
        }
        let (folder, result) = try_unpack(&evil.bytes());
        let outside = folder.path().join("outside");
        assert_eq!(fs::read_to_string(&outside).unwrap(), "outside");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 3);
        if result.is_ok() {
            let inside = folder.path().join("inside").canonicalize().unwrap();
            stays_inside(&inside, &inside);
        }
    }
}

/// Checks that everything in `folder` leads to somewhere in `inside`, or nowhere.
fn stays_inside(folder: &Path, inside: &Path) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if let Ok(real) = path.canonicalize() {
            assert!(real.starts_with(inside), "{} leads to {}", path.display(), real.display());
        }
        if path.symlink_metadata().unwrap().is_dir() {
            stays_inside(&path, inside);
        }
    }
}
