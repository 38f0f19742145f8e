#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::Read as _;

use flate2::read::GzDecoder;
use tar::Archive;

use super::tarball::pack;

#[test]
fn a_tarball_depends_on_nothing_but_its_files() {
    let file = |name: &str, mode| (name.to_owned(), mode, name.as_bytes().to_vec());
    let files = [file("docs/a.md", 0o644), file("cohort", 0o755)];
    let tarball = pack("cohort-1", files.to_vec()).unwrap();
    let reversed = files.iter().rev().cloned().collect();
    assert_eq!(pack("cohort-1", reversed).unwrap(), tarball);
    let mut archive = Archive::new(GzDecoder::new(tarball.as_slice()));
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let header = entry.header().clone();
        assert_eq!((header.uid().unwrap(), header.mtime().unwrap()), (0, super::EPOCH_S));
        let mut text = String::new();
        entry.read_to_string(&mut text).unwrap();
        (path, header.mode().unwrap(), text)
    });
    let expected =
        [("cohort-1/cohort", 0o755, "cohort"), ("cohort-1/docs/a.md", 0o644, "docs/a.md")];
    let expected = expected.map(|(path, mode, text)| (path.to_owned(), mode, text.to_owned()));
    assert_eq!(entries.collect::<Vec<_>>(), expected);
}
