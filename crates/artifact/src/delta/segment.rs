//! One patched segment: packs its steps and their bytes, and unpacks them.
//!
//! Four streams, one after another in one zstd frame, each of similar bytes: the steps, the
//! distances between differing bytes, the differences, and the new bytes. Equal bytes, nearly all
//! of them, are not stored.

use std::io::{self, Write};

use super::DeltaError;
use super::archive::Window;
use super::matching::Step;

/// High, because a delta is packed once and sent to a fleet; unpacking stays fast.
const ZSTD_LEVEL: i32 = 19;

/// For mostly new segments, where the higher level takes ten times as long and saves a few percent.
const ZSTD_LEVEL_NEW: i32 = 9;

/// Most bytes of the four streams together: four times a segment, more than a publisher ever needs.
/// Bounds the memory of a server that applies one.
pub(super) const STREAMS_BYTES_MAX: usize = 64 << 20;

/// Longest encoded number, in bytes: 64 bits, 7 per byte.
const NUMBER_BYTES_MAX: usize = 10;

/// Bytes copied or added at a time.
const PIECE_BYTES: usize = 64 << 10;

/// A segment as stored in the delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packed {
    /// Lengths of the streams: steps, distances, differences, new bytes.
    pub(super) lengths: [u32; 4],
    pub(super) bytes: Vec<u8>,
}

/// Packs the steps that turn `old` into `new`.
pub(super) fn pack(old: &[u8], new: &[u8], steps: &[Step]) -> io::Result<Packed> {
    let mut streams: [Vec<u8>; 4] = Default::default();
    let [control, distances, differences, extras] = &mut streams;
    let (mut at, mut expected, mut equal) = (0_usize, 0_usize, 0_u64);
    for step in steps {
        put_number(control, step.same as u64);
        put_number(control, step.extra as u64);
        put_number(control, zigzag(step.from as i64 - expected as i64));
        let (same, rest) = new[at..].split_at(step.same);
        for (new, old) in same.iter().zip(&old[step.from..]) {
            if new == old {
                equal += 1;
            } else {
                put_number(distances, equal);
                differences.push(new.wrapping_sub(*old));
                equal = 0;
            }
        }
        extras.extend_from_slice(&rest[..step.extra]);
        at += step.same + step.extra;
        expected = step.from + step.same;
    }
    let mut lengths = [0; 4];
    for (length, stream) in lengths.iter_mut().zip(&streams) {
        *length = u32::try_from(stream.len()).map_err(|_| io::Error::other("a stream of 4 GiB"))?;
    }
    let streams = streams.concat();
    let level = if streams.len() > new.len() / 2 { ZSTD_LEVEL_NEW } else { ZSTD_LEVEL };
    let bytes = zstd::bulk::compress(&streams, level)?;
    Ok(Packed { lengths, bytes })
}

/// Writes the `length` bytes of a segment. Trusts nothing in `packed`.
pub(super) fn unpack(
    old: &Window<'_>,
    packed: &Packed,
    length: u64,
    out: &mut dyn Write,
) -> Result<(), DeltaError> {
    let total: u64 = packed.lengths.into_iter().map(u64::from).sum();
    let total = usize::try_from(total).ok().filter(|total| *total <= STREAMS_BYTES_MAX);
    let total = total.ok_or(DeltaError::Malformed { what: "streams that are too long" })?;
    let streams = zstd::bulk::decompress(&packed.bytes, total)
        .map_err(|_| DeltaError::Malformed { what: "a frame that does not unpack" })?;
    if streams.len() != total {
        return Err(DeltaError::Malformed { what: "streams of another length" });
    }
    let [steps, distances, differences, _] = packed.lengths;
    let (mut steps, rest) = streams.split_at(steps as usize);
    let (distances, rest) = rest.split_at(distances as usize);
    let (differences, mut extras) = rest.split_at(differences as usize);
    let mut differences = Differences::new(differences, distances)?;
    let malformed = |what| DeltaError::Malformed { what };
    let (mut left, mut expected) = (length, 0_i64);
    let mut piece = vec![0; PIECE_BYTES];
    while left > 0 {
        let [same, extra, moved] = [(); 3].map(|()| take_number(&mut steps));
        let (same, extra, moved) = (same?, extra?, moved?);
        let from = expected.checked_add(unzigzag(moved));
        let from = from.and_then(|from| u64::try_from(from).ok());
        let from = from.ok_or_else(|| malformed("a step before the beginning"))?;
        let end = from.checked_add(same).filter(|end| *end <= old.length);
        let end = end.ok_or_else(|| malformed("a step beyond the end"))?;
        let advance = same.checked_add(extra).filter(|advance| (1..=left).contains(advance));
        left -= advance.ok_or_else(|| malformed("a step of no possible length"))?;
        let mut at = from;
        while at < end {
            let count = (end - at).min(PIECE_BYTES as u64);
            let piece = &mut piece[..usize::try_from(count).unwrap_or(PIECE_BYTES)];
            old.read(at, piece).map_err(DeltaError::Base)?;
            differences.add_to(piece)?;
            out.write_all(piece).map_err(DeltaError::Result)?;
            at += count;
        }
        let extra = usize::try_from(extra).unwrap_or(usize::MAX);
        let (now, later) =
            extras.split_at_checked(extra).ok_or_else(|| malformed("too few new bytes"))?;
        out.write_all(now).map_err(DeltaError::Result)?;
        extras = later;
        expected = i64::try_from(end).unwrap_or(i64::MAX);
    }
    if steps.is_empty() && extras.is_empty() && differences.are_used_up() {
        Ok(())
    } else {
        Err(malformed("bytes that belong to no step"))
    }
}

/// What is added to the base's bytes.
struct Differences<'p> {
    bytes: std::slice::Iter<'p, u8>,
    distances: &'p [u8],
    /// Equal bytes before the next difference; after the last one, all bytes are equal.
    equal: u64,
}

impl<'p> Differences<'p> {
    fn new(bytes: &'p [u8], mut distances: &'p [u8]) -> Result<Self, DeltaError> {
        let equal = next_distance(&mut distances)?;
        Ok(Self { bytes: bytes.iter(), distances, equal })
    }

    /// Turns the next piece of the base into a piece of the artifact.
    fn add_to(&mut self, piece: &mut [u8]) -> Result<(), DeltaError> {
        let mut rest = piece.iter_mut();
        while self.equal < rest.len() as u64 {
            let equal = usize::try_from(self.equal).unwrap_or(usize::MAX);
            let (Some(byte), Some(difference)) = (rest.nth(equal), self.bytes.next()) else {
                return Err(DeltaError::Malformed { what: "too few differences" });
            };
            *byte = byte.wrapping_add(*difference);
            self.equal = next_distance(&mut self.distances)?;
        }
        self.equal -= rest.len() as u64;
        Ok(())
    }

    fn are_used_up(&self) -> bool {
        self.distances.is_empty() && self.bytes.len() == 0
    }
}

/// The next distance; after the last difference, unlimited.
fn next_distance(distances: &mut &[u8]) -> Result<u64, DeltaError> {
    if distances.is_empty() { Ok(u64::MAX) } else { take_number(distances) }
}

fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)).cast_unsigned()
}

fn unzigzag(number: u64) -> i64 {
    (number >> 1).cast_signed() ^ -(number & 1).cast_signed()
}

/// Seven bits per byte, lowest first; the top bit means that more follow.
fn put_number(stream: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        stream.push((number & 0x7f) as u8 | 0x80);
        number >>= 7;
    }
    stream.push(number as u8);
}

fn take_number(stream: &mut &[u8]) -> Result<u64, DeltaError> {
    let mut number = 0_u64;
    for place in 0..NUMBER_BYTES_MAX {
        let Some((byte, rest)) = stream.split_first() else { break };
        *stream = rest;
        let bits = u64::from(byte & 0x7f);
        let shifted = bits << (7 * place);
        if shifted >> (7 * place) != bits {
            break;
        }
        number |= shifted;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(DeltaError::Malformed { what: "a number that has no end" })
}
