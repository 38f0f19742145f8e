//! Decides which part of the new archive is compared with which part of the old one.
//!
//! Each file is compared with its namesake, small files in batches; long files are split. So memory
//! is bounded for archives of any length, and the search for matches starts where they are likely.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufReader, Read, Seek as _, SeekFrom};
use std::ops::Range;

use tar::Archive;

/// Longest segment of the new archive, in bytes.
pub(super) const SEGMENT_BYTES_MAX: u64 = 16 << 20;

/// Longest window of the old archive for one segment, in bytes: twice a segment, so that data that
/// moved by up to half a segment is found. With its table (six bytes per position), it bounds the
/// publisher's memory to about 300 MiB per worker.
pub(super) const WINDOW_BYTES_MAX: u64 = 32 << 20;

/// Equal runs of at least this many bytes become a copy, without a search.
const COPY_BYTES_MIN: u64 = 64 << 10;

/// Minimum slack of a window on each side of the namesakes, in bytes.
const SLACK_BYTES_MIN: u64 = 64 << 10;

/// Most files of an archive: bounds the time for hostile archives.
const MEMBERS_MAX: usize = 300_000;

/// One file of an archive, from its header (including extended headers) to its padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Member {
    pub(super) name: Vec<u8>,
    pub(super) span: Range<u64>,
    pub(super) digest: blake3::Hash,
}

/// A part of the new archive, and where it comes from in the old one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Record {
    /// Copied from the old archive.
    Copy { from: u64, length: u64 },
    /// Patched from a window of the old archive.
    Patch { window: Range<u64>, new: Range<u64> },
}

/// The files of an archive, covering it without gaps. Anything that is not an archive counts as one
/// unnamed file.
pub(super) fn members(file: &File, length: u64) -> io::Result<Vec<Member>> {
    let ends = archive_ends(file, length).unwrap_or_else(|_| Vec::new());
    let mut members = Vec::with_capacity(ends.len() + 1);
    let mut reader = BufReader::with_capacity(1 << 18, file);
    reader.seek(SeekFrom::Start(0))?;
    let mut begin = 0;
    for (name, end) in ends.into_iter().chain([(Vec::new(), length)]) {
        if end <= begin || end > length {
            continue;
        }
        let mut hasher = blake3::Hasher::new();
        io::copy(&mut reader.by_ref().take(end - begin), &mut hasher)?;
        members.push(Member { name, span: begin..end, digest: hasher.finalize() });
        begin = end;
    }
    Ok(members)
}

/// Name and end of each file.
fn archive_ends(mut file: &File, length: u64) -> io::Result<Vec<(Vec<u8>, u64)>> {
    file.seek(SeekFrom::Start(0))?;
    let mut archive = Archive::new(file);
    let mut ends = Vec::new();
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        let end = entry.raw_file_position() + entry.size().next_multiple_of(512);
        ends.push((entry.path_bytes().into_owned(), end.min(length)));
        if ends.len() > MEMBERS_MAX {
            return Err(io::Error::other("more files than can be compared"));
        }
    }
    Ok(ends)
}

/// A piece of the new archive, and the similar piece of the old.
#[derive(Debug, Clone)]
struct Pair {
    new: Range<u64>,
    old: Range<u64>,
    same: bool,
}

/// Splits the new archive into records. Pure.
pub(super) fn records(old: &[Member], new: &[Member]) -> Vec<Record> {
    let old_length = old.last().map_or(0, |member| member.span.end);
    let mut records = Vec::new();
    let mut open: Option<(Range<u64>, Range<u64>)> = None;
    let close = |open: &mut Option<(Range<u64>, Range<u64>)>, records: &mut Vec<Record>| {
        if let Some((new, hull)) = open.take() {
            let window = widen(&hull, &new, old_length);
            records.push(Record::Patch { window, new });
        }
    };
    for pair in pairs(old, new) {
        if pair.same && length(&pair.new) >= COPY_BYTES_MIN {
            close(&mut open, &mut records);
            records.push(Record::Copy { from: pair.old.start, length: length(&pair.new) });
            continue;
        }
        for piece in cut(&pair) {
            let joined = open
                .as_ref()
                .map(|(new, hull)| (new.start..piece.new.end, hull_of(hull, &piece.old)));
            match joined {
                Some((new, hull))
                    if length(&new) <= SEGMENT_BYTES_MAX && length(&hull) <= WINDOW_BYTES_MAX =>
                {
                    open = Some((new, hull));
                }
                _ => {
                    close(&mut open, &mut records);
                    open = Some((piece.new, piece.old));
                }
            }
        }
    }
    close(&mut open, &mut records);
    records
}

/// Pairs each file with its namesake; merges equal files that are adjacent in both archives.
fn pairs(old: &[Member], new: &[Member]) -> Vec<Pair> {
    let by_name: HashMap<&[u8], &Member> =
        old.iter().map(|member| (member.name.as_slice(), member)).collect();
    // `libfoo.so.1.2.3` matches `libfoo.so.1.2.4` if there is just one of each.
    let mut by_stem: HashMap<Vec<u8>, Option<&Member>> = HashMap::new();
    for member in old {
        let one = by_stem.entry(stem(&member.name)).or_insert(Some(member));
        if one.is_some_and(|one| one != member) {
            *one = None;
        }
    }
    let mut pairs: Vec<Pair> = Vec::new();
    // Offset after the last namesake: the best guess for a file without one.
    let mut goes_on = 0;
    for member in new {
        let namesake = by_name.get(member.name.as_slice()).copied();
        let found = namesake.or_else(|| by_stem.get(&stem(&member.name)).copied().flatten());
        let same = found.is_some_and(|found| found.digest == member.digest);
        let span = found.map_or(goes_on..goes_on, |found| found.span.clone());
        goes_on = span.end;
        if let Some(last) = pairs.last_mut()
            && last.same
            && same
            && last.old.end == span.start
        {
            last.old.end = span.end;
            last.new.end = member.span.end;
            continue;
        }
        pairs.push(Pair { new: member.span.clone(), old: span, same });
    }
    pairs
}

/// A name with each number replaced by `0`.
fn stem(name: &[u8]) -> Vec<u8> {
    let mut stem = Vec::with_capacity(name.len());
    for byte in name {
        match byte {
            b'0'..=b'9' if stem.last() == Some(&b'0') => {}
            b'0'..=b'9' => stem.push(b'0'),
            other => stem.push(*other),
        }
    }
    stem
}

/// Splits a pair that is too long; each piece is paired with the same fraction of the old archive.
fn cut(pair: &Pair) -> Vec<Pair> {
    let new = length(&pair.new);
    if new <= SEGMENT_BYTES_MAX && length(&pair.old) <= WINDOW_BYTES_MAX {
        return vec![pair.clone()];
    }
    // If only the old part is long, its pieces must still fit a window.
    let count = new.div_ceil(SEGMENT_BYTES_MAX).max(1);
    let share = |of: &Range<u64>, part: u64| {
        let part = u128::from(length(of)) * u128::from(part) / u128::from(count);
        of.start + u64::try_from(part).unwrap_or(0)
    };
    let pieces = (0..count).map(|part| {
        let old = share(&pair.old, part)..share(&pair.old, part + 1);
        let old = old.start..old.end.min(old.start + WINDOW_BYTES_MAX);
        Pair { new: share(&pair.new, part)..share(&pair.new, part + 1), old, same: false }
    });
    pieces.collect()
}

/// The window around what the namesakes cover.
fn widen(hull: &Range<u64>, new: &Range<u64>, old_length: u64) -> Range<u64> {
    let room = WINDOW_BYTES_MAX.saturating_sub(length(hull)) / 2;
    let slack = (length(new) / 2).max(SLACK_BYTES_MIN).min(room);
    hull.start.saturating_sub(slack)..hull.end.saturating_add(slack).min(old_length)
}

fn hull_of(one: &Range<u64>, other: &Range<u64>) -> Range<u64> {
    one.start.min(other.start)..one.end.max(other.end)
}

fn length(range: &Range<u64>) -> u64 {
    range.end - range.start
}
