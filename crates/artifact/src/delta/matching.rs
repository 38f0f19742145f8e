//! Finds where in the old data each byte of the new data comes from: bsdiff's search.
//!
//! A recompiled program is the old one with code moved and addresses changed: long runs that are
//! *nearly* the same. So a match is extended over differing bytes while more than half of them
//! agree, and the differences are stored byte by byte. bsdiff finds its matches in a suffix array;
//! here, a table contains all positions by their next eight bytes. It is built in one pass, and
//! searched outwards from where the match is expected. Data that is hardly changed needs no table.

use memchr::memmem;

/// Shortest match, in bytes: shorter ones gain nothing in bsdiff either.
const SEED: usize = 8;

/// Most candidates tried per position, nearest first: code moves a little.
const CANDIDATES_MAX: usize = 64;

/// A match of this many bytes ends the search: looking for a longer one takes time quadratic in the
/// length of repetitions (a gigabyte of zeros).
const LONG_ENOUGH: usize = 4 << 10;

/// A match elsewhere must exceed the one in line by more than this many bytes (as in bsdiff): a new
/// step costs some bytes.
const BETTER_BY: usize = 8;

/// Most bits of a table key: 16 Mi lists for windows of 32 MiB.
const KEY_BITS_MAX: u32 = 24;

/// The next bytes of the new data: `same` bytes similar to the old from offset `from`, then `extra`
/// bytes that match nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) from: usize,
    pub(super) same: usize,
    pub(super) extra: usize,
}

/// All positions of the old data, by the bytes found there.
struct Table<'a> {
    old: &'a [u8],
    /// Start of each key's list in `positions`, plus the end of the last one.
    starts: Vec<u32>,
    /// Ascending within each list.
    positions: Vec<u32>,
    shift: u32,
}

impl<'a> Table<'a> {
    fn new(old: &'a [u8]) -> Self {
        let count = (old.len() + 1).saturating_sub(SEED);
        let bits = (usize::BITS - count.leading_zeros()).clamp(8, KEY_BITS_MAX);
        let shift = u64::BITS - bits;
        let mut starts = vec![0_u32; (1 << bits) + 1];
        for seed in old.windows(SEED) {
            starts[key(seed, shift)] += 1;
        }
        let mut end = 0_u32;
        for start in &mut starts {
            end += *start;
            *start = end;
        }
        // Filled from the back, so that each start ends up at the start of its list.
        let mut positions = vec![0_u32; count];
        for (position, seed) in old.windows(SEED).enumerate().rev() {
            let start = &mut starts[key(seed, shift)];
            *start -= 1;
            positions[*start as usize] = u32::try_from(position).unwrap_or(u32::MAX);
        }
        Self { old, starts, positions, shift }
    }

    /// Position and length of the best match for the start of `new`; `expected` is where the last
    /// match continues.
    fn best(&self, new: &[u8], expected: Option<usize>) -> (usize, usize) {
        let mut best = (0, 0);
        let mut needed = SEED;
        if let Some(at) = expected.filter(|at| *at < self.old.len()) {
            best = (at, common(&self.old[at..], new));
            needed = best.1 + BETTER_BY + 1;
        }
        if best.1 >= LONG_ENOUGH || new.len() < needed.max(SEED) {
            return best;
        }
        let key = key(&new[..SEED], self.shift);
        let list = &self.positions[self.starts[key] as usize..self.starts[key + 1] as usize];
        let near = u32::try_from(expected.unwrap_or(0)).unwrap_or(u32::MAX);
        let mut above = list.partition_point(|position| *position < near);
        let mut below = above;
        for _ in 0..CANDIDATES_MAX.min(list.len()) {
            let low = below.checked_sub(1).map(|index| list[index]);
            let high = list.get(above).copied();
            let position = match (low, high) {
                (Some(low), Some(high)) if near - low <= high - near => {
                    below -= 1;
                    low
                }
                (_, Some(high)) => {
                    above += 1;
                    high
                }
                (Some(low), None) => {
                    below -= 1;
                    low
                }
                (None, None) => break,
            };
            let old = &self.old[position as usize..];
            // First the one byte that would make it longer than the best so far.
            if old.len() < needed || old[needed - 1] != new[needed - 1] {
                continue;
            }
            let length = common(old, new);
            if length >= needed {
                best = (position as usize, length);
                needed = length + 1;
                if length >= LONG_ENOUGH || new.len() < needed {
                    break;
                }
            }
        }
        best
    }
}

fn key(seed: &[u8], shift: u32) -> usize {
    let mut bytes = [0; SEED];
    bytes.copy_from_slice(&seed[..SEED]);
    // Fibonacci hashing: the high bits of the product depend on all bytes.
    (u64::from_le_bytes(bytes).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> shift) as usize
}

/// Length of the common prefix.
fn common(one: &[u8], other: &[u8]) -> usize {
    let (one_words, _) = one.as_chunks::<8>();
    let (other_words, _) = other.as_chunks::<8>();
    let words = one_words.iter().zip(other_words).take_while(|(one, other)| one == other).count();
    let begun = words * 8;
    let rest = one[begun..].iter().zip(&other[begun..]);
    begun + rest.take_while(|(one, other)| one == other).count()
}

/// How many bytes have to agree to go on after a difference.
const SURE: usize = 32;
/// Longest run of differing bytes after which both go on in the same place.
const CHANGED_MAX: usize = 64;
/// Longest insertion or removal that is looked for without an index.
const MOVED_MAX: usize = 64 << 10;
/// New data with more differences than one in so many bytes is worth an index.
const BYTES_PER_DIFFERENCE: usize = 4096;

/// The steps of new data that is the old with a few bytes changed, inserted or removed: found by
/// following both, without an index. `None` if there is more to it.
fn follow(old: &[u8], new: &[u8]) -> Option<Vec<Step>> {
    let mut from = memmem::find(old, new.get(..SURE)?)?;
    let (mut steps, mut begun, mut scan) = (Vec::new(), 0, 0);
    let mut left = new.len() / BYTES_PER_DIFFERENCE + 1;
    loop {
        // Where the old data is that belongs to `scan`.
        let at = from + (scan - begun);
        scan += common(&old[at..], &new[scan..]);
        let (at, rest) = (from + (scan - begun), &new[scan..]);
        if rest.is_empty() {
            steps.push(Step { from, same: scan - begun, extra: 0 });
            return Some(steps);
        }
        left = left.checked_sub(1)?;
        let behind = &old[at..];
        let changed = (1..=CHANGED_MAX).find(|length| {
            let next = *length..*length + SURE;
            rest.get(next.clone()).is_some_and(|bytes| Some(bytes) == behind.get(next))
        });
        if let Some(length) = changed {
            scan += length;
            continue;
        }
        let near = |bytes: &[u8]| bytes.len().min(MOVED_MAX);
        let inserted = behind.get(..SURE).and_then(|it| memmem::find(&rest[..near(rest)], it));
        let removed = rest.get(..SURE).and_then(|it| memmem::find(&behind[..near(behind)], it));
        let (extra, skipped) = match (inserted, removed) {
            (Some(extra), _) => (extra, 0),
            (None, Some(skipped)) => (0, skipped),
            // The end is another one.
            (None, None) if rest.len() <= MOVED_MAX => (rest.len(), 0),
            (None, None) => return None,
        };
        steps.push(Step { from, same: scan - begun, extra });
        scan += extra;
        if scan == new.len() {
            return Some(steps);
        }
        (begun, from) = (scan, at + skipped);
    }
}

/// Splits `new` into steps over `old`, which has at most `u32::MAX` bytes.
pub(super) fn steps(old: &[u8], new: &[u8]) -> Vec<Step> {
    follow(old, new).unwrap_or_else(|| search(old, new))
}

/// The same for any data, by an index.
fn search(old: &[u8], new: &[u8]) -> Vec<Step> {
    let table = Table::new(old);
    let mut steps = Vec::new();
    // Start of the pending step, in the new and the old data.
    let (mut begun, mut begun_old) = (0_usize, 0_usize);
    let (mut scan, mut length, mut found) = (0_usize, 0_usize, 0_usize);
    while scan < new.len() {
        scan += length;
        let mut in_line = 0_usize;
        let mut counted = scan;
        // Where the pending step would continue for a position of the new data.
        let goes_on = |at: usize| (begun_old + at).checked_sub(begun).filter(|at| *at < old.len());
        let agrees = |at: usize| goes_on(at).is_some_and(|on| old[on] == new[at]);
        while scan < new.len() {
            (found, length) = table.best(&new[scan..], goes_on(scan));
            while counted < scan + length {
                in_line += usize::from(agrees(counted));
                counted += 1;
            }
            if (length == in_line && length != 0) || length > in_line + BETTER_BY {
                break;
            }
            if counted > scan {
                in_line -= usize::from(agrees(scan));
            } else {
                counted = scan + 1;
            }
            scan += 1;
        }
        if length == in_line && scan < new.len() {
            continue;
        }
        let between = &new[begun..scan];
        let ahead = longest_agreeing(old[begun_old..].iter().zip(between).map(agreement));
        // The match is extended backwards, towards the pending step.
        let before = if scan < new.len() { &old[..found] } else { &[] };
        let back = longest_agreeing(before.iter().rev().zip(between.iter().rev()).map(agreement));
        let (ahead, back) = if begun + ahead > scan - back {
            let overlap = begun + ahead - (scan - back);
            let cut = cut_of(
                &new[scan - back..begun + ahead],
                &old[begun_old + ahead - overlap..begun_old + ahead],
                &old[found - back..found - back + overlap],
            );
            (ahead - overlap + cut, back - cut)
        } else {
            (ahead, back)
        };
        let extra = (scan - back) - (begun + ahead);
        if ahead + extra > 0 {
            steps.push(Step { from: begun_old, same: ahead, extra });
        }
        (begun, begun_old) = (scan - back, found.saturating_sub(back));
    }
    steps
}

/// Length of the prefix with the highest total score; 0 if no prefix scores above 0.
fn longest_agreeing(scores: impl Iterator<Item = isize>) -> usize {
    let (mut score, mut best, mut length) = (0, 0, 0);
    for (at, point) in scores.enumerate() {
        score += point;
        if score > best {
            (best, length) = (score, at + 1);
        }
    }
    length
}

fn agreement((one, other): (&u8, &u8)) -> isize {
    if one == other { 1 } else { -1 }
}

/// The best place to switch from the first to the second of two overlapping matches.
fn cut_of(new: &[u8], first: &[u8], second: &[u8]) -> usize {
    let stretches = new.iter().zip(first).zip(second);
    longest_agreeing(
        stretches
            .map(|((new, first), second)| isize::from(new == first) - isize::from(new == second)),
    )
}
