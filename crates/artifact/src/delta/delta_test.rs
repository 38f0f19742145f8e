//! Deltas between archives of all kinds, and malicious deltas.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::archive::{Unpacked, Window};
use super::format::{Body, Header, read_body, read_header, write_body, write_header};
use super::layout::{Member, Record, SEGMENT_BYTES_MAX, WINDOW_BYTES_MAX, records};
use super::matching::steps;
use super::segment::{self, Packed};
use super::{DeltaError, DeltaInput, DeltaMaker, Method, apply_delta};
use crate::manifest::Format;
use crate::pack::pack_folder;
use crate::units::{UnitHashes, hash_file};

fn unpacked(bytes: &[u8]) -> Unpacked {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Unpacked { file, length: bytes.len() as u64, format: Format::Tar }
}

fn noise(seed: &str, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    blake3::Hasher::new().update(seed.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes
}

/// Makes a patch, applies it, and returns its length.
fn round_trip(old: &[u8], new: &[u8]) -> usize {
    let packed = segment::pack(old, new, &steps(old, new)).unwrap();
    let mut made = Vec::new();
    let old = unpacked(old);
    let window = Window { old: &old, from: 0, length: old.length };
    segment::unpack(&window, &packed, new.len() as u64, &mut made).unwrap();
    assert!(made == new, "another result");
    packed.bytes.len()
}

#[test]
fn little_is_needed_for_little() {
    let old = noise("old", 300_000);
    assert!(round_trip(&old, &old) < 100);
    let mut moved = noise("new", 500);
    moved.extend_from_slice(&old[100_000..]);
    moved.extend_from_slice(&old[..100_000]);
    for at in (0..moved.len()).step_by(5_000) {
        moved[at] ^= 0x41;
    }
    let length = round_trip(&old, &moved);
    assert!(length < 1_000, "{length}");
    assert!(round_trip(&old, &noise("other", 10_000)) < 11_000);
    assert!(round_trip(&[], &old[..5]) < 50);
    assert!(round_trip(&old, &[]) < 50);
    // Endless repetition must not take endless time.
    assert!(round_trip(&vec![0; 2 << 20], &vec![0; 3 << 20]) < 1_000);
}

#[derive(Debug, Clone)]
enum Edit {
    Insert(prop::sample::Index, Vec<u8>),
    Remove(prop::sample::Index, usize),
    Replace(prop::sample::Index, Vec<u8>),
    Repeat(prop::sample::Index, usize),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    let index = any::<prop::sample::Index>;
    let bytes = || prop::collection::vec(any::<u8>(), 0..200);
    let edit = prop_oneof![
        (index(), bytes()).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        (index(), 0..2_000_usize).prop_map(|(at, length)| Edit::Remove(at, length)),
        (index(), bytes()).prop_map(|(at, bytes)| Edit::Replace(at, bytes)),
        (index(), 0..2_000_usize).prop_map(|(at, length)| Edit::Repeat(at, length)),
    ];
    prop::collection::vec(edit, 0..12)
}

fn edited(mut bytes: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        let place = |at: &prop::sample::Index, bytes: &Vec<u8>| at.index(bytes.len() + 1);
        match edit {
            Edit::Insert(at, new) => {
                let at = place(at, &bytes);
                bytes.splice(at..at, new.iter().copied());
            }
            Edit::Remove(at, length) => {
                let at = place(at, &bytes);
                bytes.drain(at..(at + length).min(bytes.len()));
            }
            Edit::Replace(at, new) => {
                let at = place(at, &bytes);
                let end = (at + new.len()).min(bytes.len());
                bytes.splice(at..end, new[..end - at].iter().copied());
            }
            Edit::Repeat(at, length) => {
                let at = place(at, &bytes);
                let again = bytes[at..(at + length).min(bytes.len())].to_vec();
                bytes.extend(again);
            }
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_edit_is_told_and_made_again(
        seed in any::<u32>(),
        length in 0..20_000_usize,
        letters in 1..=255_u8,
        edits in edits(),
    ) {
        let mut old = noise(&seed.to_string(), length);
        old.iter_mut().for_each(|byte| *byte %= letters);
        let new = edited(old.clone(), &edits);
        round_trip(&old, &new);
        round_trip(&new, &old);
    }

    #[test]
    fn records_cover_the_new_archive_within_limits(
        old in prop::collection::vec((0..6_u8, 1..40_u64 << 20, any::<bool>()), 0..8),
        new in prop::collection::vec((0..6_u8, 1..40_u64 << 20, any::<bool>()), 1..8),
    ) {
        let members = |list: &[(u8, u64, bool)]| {
            let mut at = 0;
            let member = |(name, length, odd): &(u8, u64, bool)| {
                let span = at..at + length;
                at = span.end;
                let digest = blake3::hash(&[*name, u8::from(*odd)]);
                // Equal digests mean equal lengths.
                let digest = if *odd { digest } else { blake3::hash(&length.to_le_bytes()) };
                Member { name: vec![b'a' + *name], span, digest }
            };
            list.iter().map(member).collect::<Vec<_>>()
        };
        let (old, new) = (members(&old), members(&new));
        let old_length = old.last().map_or(0, |member| member.span.end);
        let mut at = 0;
        for record in records(&old, &new) {
            match record {
                Record::Copy { length, .. } => at += length,
                Record::Patch { window, new } => {
                    prop_assert_eq!(new.start, at);
                    prop_assert!(new.end > at && new.end - at <= SEGMENT_BYTES_MAX);
                    prop_assert!(window.start <= window.end && window.end <= old_length);
                    prop_assert!(window.end - window.start <= WINDOW_BYTES_MAX);
                    at = new.end;
                }
            }
        }
        prop_assert_eq!(at, new.last().unwrap().span.end);
    }
}

/// Whatever the bytes: an error or the right output, never a panic, and never more than allowed.
#[test]
fn no_damage_does_harm() {
    let lab = lab();
    let delta = fs::read(&lab.delta).unwrap();
    let index = any::<prop::sample::Index>;
    let flips = prop::collection::vec((index(), any::<u8>()), 1..6);
    let mut runner = TestRunner::new(ProptestConfig::with_cases(64));
    let run = runner.run(&(flips, index(), any::<bool>()), |(flips, cut, cuts)| {
        let mut bytes = delta.clone();
        for (at, flip) in flips {
            let at = at.index(bytes.len());
            bytes[at] ^= flip;
        }
        if cuts {
            bytes.truncate(cut.index(bytes.len()));
        }
        let mut out = Vec::new();
        let applied = lab.apply_bytes(&bytes, &mut out);
        // Some bits of a compressed frame mean nothing: what is accepted is the whole artifact.
        prop_assert!(applied.is_ok() || bytes != delta);
        prop_assert!(applied.is_err() || applied.is_ok_and(|hashes| hashes == lab.whole));
        prop_assert!(out.len() as u64 <= lab.whole.length());
        Ok(())
    });
    run.unwrap();
}

/// Two releases on disk, and the delta between them.
struct Lab {
    folder: tempfile::TempDir,
    old: PathBuf,
    new: PathBuf,
    whole: UnitHashes,
    delta: PathBuf,
    made: UnitHashes,
    method: Method,
}

fn release(folder: &Path, name: &str, change: impl Fn(&mut Vec<u8>)) -> PathBuf {
    let source = folder.join(name);
    fs::create_dir_all(source.join("lib")).unwrap();
    let mut program = noise("program", 200_000);
    // Compressible data, so that the archive is not simply stored.
    program.extend((0..100_000_u32).flat_map(|n| (n / 7).to_le_bytes()));
    change(&mut program);
    fs::write(source.join("app"), program).unwrap();
    fs::write(source.join("lib/same"), noise("same", 150_000)).unwrap();
    fs::write(source.join(format!("lib/part.so.{name}")), noise("part", 20_000)).unwrap();
    let artifact = folder.join(format!("{name}.tar.zst"));
    pack_folder(&source, &mut File::create(&artifact).unwrap()).unwrap();
    artifact
}

fn lab() -> Lab {
    let folder = tempfile::tempdir().unwrap();
    let old = release(folder.path(), "1", |_| {});
    let new = release(folder.path(), "2", |program| {
        program.splice(50_000..50_010, *b"some other bytes");
        program.iter_mut().skip(70_000).step_by(3_000).for_each(|byte| *byte ^= 1);
    });
    lab_of(folder, old, new).expect("worth it")
}

fn lab_of(folder: tempfile::TempDir, old: PathBuf, new: PathBuf) -> Option<Lab> {
    let whole = hash_file(&new).unwrap();
    let maker = DeltaMaker::new(&new, whole.root(), whole.length(), folder.path()).unwrap()?;
    let delta = folder.path().join("delta");
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&delta);
    let made = maker.delta_from(&old, &file.unwrap(), &|| false).unwrap()?;
    assert_eq!(made, hash_file(&delta).unwrap());
    Some(Lab { folder, old, new, whole, delta, made, method: maker.method() })
}

impl Lab {
    fn apply(&self, out: &mut Vec<u8>) -> Result<UnitHashes, DeltaError> {
        self.apply_file(&self.old, &File::open(&self.delta).unwrap(), out)
    }

    fn apply_bytes(&self, delta: &[u8], out: &mut Vec<u8>) -> Result<UnitHashes, DeltaError> {
        let path = self.folder.path().join("hostile");
        fs::write(&path, delta).unwrap();
        self.apply_file(&self.old, &File::open(path).unwrap(), out)
    }

    fn apply_file(
        &self,
        base: &Path,
        delta: &File,
        out: &mut Vec<u8>,
    ) -> Result<UnitHashes, DeltaError> {
        let input = DeltaInput {
            base,
            delta,
            method: self.method,
            root: self.whole.root(),
            length: self.whole.length(),
            scratch: self.folder.path(),
            scratch_bytes_max: 1 << 30,
            stopped: &|| false,
        };
        apply_delta(&input, out)
    }
}

#[test]
fn the_new_artifact_comes_out_byte_for_byte() {
    let lab = lab();
    assert!(lab.made.length() * 50 < lab.whole.length(), "{}", lab.made.length());
    let mut out = Vec::new();
    assert_eq!(lab.apply(&mut out).unwrap(), lab.whole);
    assert!(out == fs::read(&lab.new).unwrap());
    assert_eq!(fs::read_dir(lab.folder.path()).unwrap().count(), 5, "nothing is left behind");
}

#[test]
fn another_base_is_noticed() {
    let lab = lab();
    let other = release(lab.folder.path(), "3", |program| program.truncate(90_000));
    let delta = File::open(&lab.delta).unwrap();
    let error = lab.apply_file(&other, &delta, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, DeltaError::OtherBase), "{error}");
    // The same length, but different.
    let other = release(lab.folder.path(), "1", |program| program[10] ^= 1);
    let delta = File::open(&lab.delta).unwrap();
    let error = lab.apply_file(&other, &delta, &mut Vec::new()).unwrap_err();
    assert!(matches!(error, DeltaError::Wrong | DeltaError::Result(_)), "{error}");
}

#[test]
fn archives_of_all_kinds() {
    let folder = || tempfile::tempdir().unwrap();
    let repack = |from: &Path, to: &str, pack: &dyn Fn(&[u8]) -> Vec<u8>| {
        let archive = zstd::decode_all(File::open(from).unwrap()).unwrap();
        let path = from.with_file_name(to);
        fs::write(&path, pack(&archive)).unwrap();
        path
    };
    let gzip = |archive: &[u8]| {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        io::Write::write_all(&mut gzip, archive).unwrap();
        gzip.finish().unwrap()
    };
    let zstd = |level: i32, checksum: bool| {
        move |archive: &[u8]| {
            let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), level).unwrap();
            encoder.include_checksum(checksum).unwrap();
            io::Write::write_all(&mut encoder, archive).unwrap();
            encoder.finish().unwrap()
        }
    };
    let (six, nineteen) = (zstd(6, true), zstd(19, false));
    type Pack<'a> = &'a dyn Fn(&[u8]) -> Vec<u8>;
    let kinds: [(&str, Pack<'_>, Option<&str>); 4] = [
        ("plain", &|archive| archive.to_vec(), Some("segments-1")),
        ("six", &six, Some("-6c")),
        ("nineteen", &nineteen, None),
        ("gzip", &gzip, None),
    ];
    for (name, pack, method) in kinds {
        let folder = folder();
        // The location of the old artifact does not matter.
        let old = repack(&release(folder.path(), "1", |_| {}), "old", &gzip);
        let new = release(folder.path(), "2", |program| program[5] ^= 9);
        let new = repack(&new, "new", pack);
        let lab = lab_of(folder, old, new);
        assert_eq!(lab.is_some(), method.is_some(), "{name}");
        if let (Some(lab), Some(method)) = (lab, method) {
            assert!(lab.method.to_string().ends_with(method), "{name}: {}", lab.method);
            assert_eq!(lab.apply(&mut Vec::new()).unwrap(), lab.whole, "{name}");
        }
    }
}

#[test]
fn what_has_nothing_in_common_is_not_worth_it() {
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str| {
        let path = folder.path().join(name);
        fs::write(&path, noise(name, 400_000)).unwrap();
        path
    };
    let (old, new) = (make("one"), make("other"));
    assert!(lab_of(tempfile::tempdir().unwrap(), old, new).is_none());
}

#[test]
fn methods_are_known_by_one_spelling() {
    let library = zstd::zstd_safe::version_number();
    for known in ["segments-1".to_owned(), format!("segments-1+zstd-{library}-3")] {
        assert_eq!(Method::known(&known).map(|method| method.to_string()), Some(known));
    }
    let other = library + 1;
    for unknown in [
        "".to_owned(),
        "bsdiff".to_owned(),
        "segments-2".to_owned(),
        format!("segments-1+zstd-{other}-3"),
        format!("segments-1+zstd-{library}-22"),
        format!("segments-1+zstd-{library}-3cc"),
        format!("segments-1+zstd-{library}-03"),
        format!("segments-1+zstd-{library}--3"),
    ] {
        assert_eq!(Method::known(&unknown), None, "{unknown}");
    }
}

#[test]
fn hostile_deltas_are_refused() {
    let lab = lab();
    let old = zstd::decode_all(File::open(&lab.old).unwrap()).unwrap().len() as u64;
    let new = zstd::decode_all(File::open(&lab.new).unwrap()).unwrap().len() as u64;
    let header = Header { old_length: old, new_length: new };
    let delta = |header: Header, bodies: &[Body]| {
        let mut bytes = Vec::new();
        write_header(&mut bytes, header).unwrap();
        bodies.iter().for_each(|body| write_body(&mut bytes, body).unwrap());
        bytes
    };
    let patch =
        |length: u32, packed: Packed| Body::Patch { from: 0, window: 1_000, length, packed };
    let packed = |streams: [&[u8]; 4]| Packed {
        lengths: streams.map(|stream| u32::try_from(stream.len()).unwrap()),
        bytes: zstd::bulk::compress(&streams.concat(), 1).unwrap(),
    };
    let bomb = {
        let mut bomb = packed([&[], &[], &[], &vec![0; 1 << 20]]);
        bomb.lengths[3] = u32::MAX;
        bomb
    };
    let small_said = {
        let mut bomb = packed([&[], &[], &[], &vec![0; 32 << 20]]);
        bomb.lengths[3] = 10;
        bomb
    };
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", vec![]),
        ("other", b"COHDELT9 and so on and so on and so on".to_vec()),
        ("no records", delta(header, &[])),
        ("huge", delta(Header { new_length: u64::MAX, ..header }, &[])),
        ("huge base", delta(Header { old_length: u64::MAX, ..header }, &[])),
        ("other base", delta(Header { old_length: old - 1, ..header }, &[])),
        ("beyond", delta(header, &[Body::Copy { from: old, length: 1 }])),
        ("overflow", delta(header, &[Body::Copy { from: u64::MAX, length: 2 }])),
        ("nothing", delta(header, &[Body::Copy { from: 0, length: 0 }])),
        ("too much", delta(header, &vec![Body::Copy { from: 0, length: old }; 3])),
        ("bomb", delta(header, &[patch(10, bomb)])),
        ("bomb with a small word", delta(header, &[patch(10, small_said)])),
        ("no steps", delta(header, &[patch(10, packed([&[], &[], &[], &[0; 10]]))])),
        ("zero steps", delta(header, &[patch(10, packed([&[0, 0, 0], &[], &[], &[]]))])),
        ("step before", delta(header, &[patch(10, packed([&[10, 0, 1], &[], &[], &[]]))])),
        (
            "step beyond",
            delta(header, &[patch(10, packed([&[10, 0, 0xff, 0xff, 3], &[], &[], &[]]))]),
        ),
        ("endless number", delta(header, &[patch(10, packed([&[0xff; 40], &[], &[], &[]]))])),
        ("too few", delta(header, &[patch(10, packed([&[0, 10, 0], &[], &[], &[1; 9]]))])),
        ("too many", delta(header, &[patch(10, packed([&[0, 10, 0], &[], &[], &[1; 11]]))])),
        ("no difference", delta(header, &[patch(10, packed([&[10, 0, 0], &[3], &[], &[]]))])),
        ("not a frame", {
            let mut broken = packed([&[0, 10, 0], &[], &[], &[1; 10]]);
            broken.bytes = vec![7; 40];
            delta(header, &[patch(10, broken)])
        }),
        ("more than needed", {
            let mut bytes = fs::read(&lab.delta).unwrap();
            bytes.push(0);
            bytes
        }),
        // Valid in itself, but another archive: endless zeros, within the format.
        ("longer than signed", {
            let noise = noise("long", 2 << 20);
            let body = patch(2 << 20, packed([&[0, 0x80, 0x80, 0x80, 1, 0], &[], &[], &noise]));
            delta(Header { new_length: 64 << 20, ..header }, &vec![body; 32])
        }),
    ];
    for (name, bytes) in cases {
        let mut out = Vec::new();
        assert!(lab.apply_bytes(&bytes, &mut out).is_err(), "{name} was taken");
        assert!(out.len() as u64 <= lab.whole.length(), "{name} wrote {} bytes", out.len());
    }
    let stopped = DeltaInput {
        base: &lab.old,
        delta: &File::open(&lab.delta).unwrap(),
        method: lab.method,
        root: lab.whole.root(),
        length: lab.whole.length(),
        scratch: lab.folder.path(),
        scratch_bytes_max: 1 << 30,
        stopped: &|| true,
    };
    assert!(matches!(apply_delta(&stopped, &mut Vec::new()), Err(DeltaError::Stopped)));
    let narrow = DeltaInput { scratch_bytes_max: 1_000, stopped: &|| false, ..stopped };
    let narrow = DeltaInput { delta: &File::open(&lab.delta).unwrap(), ..narrow };
    assert!(matches!(apply_delta(&narrow, &mut Vec::new()), Err(DeltaError::TooLong { .. })));
}

#[test]
fn the_format_of_deltas_is_held() {
    let header = Header { old_length: 70_000, new_length: 65_553 };
    let lengths = [3, 1, 1, 9];
    let bodies = [
        Body::Copy { from: 512, length: 65_536 },
        Body::Patch {
            from: 1_024,
            window: 4_096,
            length: 17,
            packed: Packed { lengths, bytes: b"a zstd frame".to_vec() },
        },
    ];
    let mut delta = Vec::new();
    write_header(&mut delta, header).unwrap();
    bodies.iter().for_each(|body| write_body(&mut delta, body).unwrap());
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "tests/golden/delta.jsonl"].iter().collect();
    cohort_base::golden::hold(&path, &[hex::encode(&delta)]);
    let mut reader = delta.as_slice();
    assert_eq!(read_header(&mut reader).unwrap(), header);
    let mut left = header.new_length;
    for body in bodies {
        assert_eq!(read_body(&mut reader, header.old_length, left).unwrap(), body);
        left -= body.length();
    }
    // Streams and numbers within a frame: a segment packed by an earlier version can be unpacked.
    let (old, new) = (noise("old", 2_000), [&noise("old", 2_000)[500..1_500], b"new"].concat());
    let packed = segment::pack(&old, &new, &steps(&old, &new)).unwrap();
    let streams = zstd::bulk::decompress(&packed.bytes, 4_096).unwrap();
    let path: PathBuf =
        [env!("CARGO_MANIFEST_DIR"), "tests/golden/delta-streams.jsonl"].iter().collect();
    cohort_base::golden::hold(&path, &[hex::encode(streams)]);
}

/// Builds without an index whatever differs in a few bytes only.
#[test]
fn what_is_hardly_changed_is_a_few_steps() {
    let old = noise("old", 1 << 20);
    let mut new = old.clone();
    for at in [1_000, 300_000, 300_050, 900_000] {
        new[at] ^= 0xff;
    }
    new.splice(500_000..500_000, *b"an insertion");
    new.drain(700_000..700_900);
    new.extend_from_slice(b"another end");
    let found = steps(&old, &new);
    assert!(found.len() <= 4, "{found:?}");
    let extra: usize = found.iter().map(|step| step.extra).sum();
    assert!(extra < 100, "{found:?}");
    assert!(round_trip(&old, &new) < 2_000);
    // From the middle of a window.
    let found = steps(&old, &old[200_000..400_000]);
    assert_eq!((found.len(), found[0].from, found[0].same), (1, 200_000, 200_000));
}
