//! Which bytes of the new come from where in the old: the search of bsdiff.
//!
//! A recompiled program is the old one with code moved and addresses changed: long runs that are
//! *nearly* the same. So a match is stretched over differing bytes for as long as more than half of
//! them agree, and the differences are told byte by byte. bsdiff finds its matches in a suffix
//! array; here it is a table of all positions by their next eight bytes, which is built in one pass
//! and searched from where the match is expected outwards.

/// Bytes that a match has at least: bsdiff gains nothing from fewer either.
const SEED: usize = 8;

/// Candidates that are looked at per position. The nearest ones first: code moves a little.
const CANDIDATES_MAX: usize = 64;

/// A match this long is taken as it is: looking for a longer one would cost time that grows with
/// the square of what repeats (a gigabyte of zeros).
const LONG_ENOUGH: usize = 4 << 10;

/// A match elsewhere has to be longer than the one in line by more than this (as in bsdiff): to
/// start over costs some bytes.
const BETTER_BY: usize = 8;

/// Most bits of the table's key: 16 Mi lists for windows of 32 MiB.
const KEY_BITS_MAX: u32 = 24;

/// So many bytes of the new: first `same` that resemble those of the old from `from` on, then
/// `extra` that are nowhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Step {
    pub(super) from: usize,
    pub(super) same: usize,
    pub(super) extra: usize,
}

/// All positions of the old, by the bytes that stand there.
struct Table<'a> {
    old: &'a [u8],
    /// Where the list of a key begins in `positions`; one more than there are keys.
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
        // Filled from behind, after which each start is where its list begins.
        let mut positions = vec![0_u32; count];
        for (position, seed) in old.windows(SEED).enumerate().rev() {
            let start = &mut starts[key(seed, shift)];
            *start -= 1;
            positions[*start as usize] = u32::try_from(position).unwrap_or(u32::MAX);
        }
        Self { old, starts, positions, shift }
    }

    /// The best match of the beginning of `new`, and its length; `expected` is where the last match
    /// goes on.
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
            // The byte that makes it longer than the best so far, before all the others.
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

/// How many bytes are the same from the beginning on.
fn common(one: &[u8], other: &[u8]) -> usize {
    let (one_words, _) = one.as_chunks::<8>();
    let (other_words, _) = other.as_chunks::<8>();
    let words = one_words.iter().zip(other_words).take_while(|(one, other)| one == other).count();
    let begun = words * 8;
    let rest = one[begun..].iter().zip(&other[begun..]);
    begun + rest.take_while(|(one, other)| one == other).count()
}

/// Cuts all of `new` into steps over `old`, which is at most `u32::MAX` bytes long.
pub(super) fn steps(old: &[u8], new: &[u8]) -> Vec<Step> {
    let table = Table::new(old);
    let mut steps = Vec::new();
    // Where the step that is not written yet begins, in the new and in the old.
    let (mut begun, mut begun_old) = (0_usize, 0_usize);
    let (mut scan, mut length, mut found) = (0_usize, 0_usize, 0_usize);
    while scan < new.len() {
        scan += length;
        let mut in_line = 0_usize;
        let mut counted = scan;
        // How the step before would go on at a position of the new.
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
        let ahead = stretch_ahead(&old[begun_old..], &new[begun..scan]);
        let back =
            if scan < new.len() { stretch_back(&old[..found], &new[begun..scan]) } else { 0 };
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

/// For how long more than half of the bytes agree, from the beginning on.
fn stretch_ahead(old: &[u8], new: &[u8]) -> usize {
    let (mut score, mut best, mut length) = (0_isize, 0_isize, 0);
    for (at, (old, new)) in old.iter().zip(new).enumerate() {
        score += if old == new { 1 } else { -1 };
        if score > best {
            (best, length) = (score, at + 1);
        }
    }
    length
}

/// The same from the end backwards.
fn stretch_back(old: &[u8], new: &[u8]) -> usize {
    let (mut score, mut best, mut length) = (0_isize, 0_isize, 0);
    for (at, (old, new)) in old.iter().rev().zip(new.iter().rev()).enumerate() {
        score += if old == new { 1 } else { -1 };
        if score > best {
            (best, length) = (score, at + 1);
        }
    }
    length
}

/// Where two stretches over the same bytes are best cut.
fn cut_of(new: &[u8], first: &[u8], second: &[u8]) -> usize {
    let (mut score, mut best, mut cut) = (0_isize, 0_isize, 0);
    for (at, ((new, first), second)) in new.iter().zip(first).zip(second).enumerate() {
        score += isize::from(new == first) - isize::from(new == second);
        if score > best {
            (best, cut) = (score, at + 1);
        }
    }
    cut
}
