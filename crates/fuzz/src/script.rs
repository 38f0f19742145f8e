//! Bytes as a script: how the fuzzer's bytes choose.

/// The bytes that are left. An exhausted script has zeros.
pub(crate) struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Script(bytes)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    pub(crate) fn is_set(&mut self) -> bool {
        self.byte() & 1 == 1
    }

    /// A number below `bound`.
    pub(crate) fn below(&mut self, bound: u8) -> u8 {
        self.byte() % bound
    }

    /// At most `count` bytes.
    pub(crate) fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(count.min(self.0.len()));
        self.0 = rest;
        taken
    }

    pub(crate) fn rest(&mut self) -> &'a [u8] {
        self.take(usize::MAX)
    }

    /// A little-endian number of `bytes` bytes.
    pub(crate) fn number(&mut self, bytes: usize) -> u64 {
        self.take(bytes).iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// A number that is likely to be near `near`, or at an end of its range.
    pub(crate) fn near(&mut self, near: u64) -> u64 {
        match self.byte() {
            small @ 0..128 => u64::from(small % 16),
            offset @ 128..208 => near.wrapping_add(u64::from(offset % 8)).wrapping_sub(4),
            far @ 208..232 => (1 << 20) + u64::from(far),
            end @ 232..248 => u64::MAX - u64::from(end - 232),
            _ => self.number(8),
        }
    }

    /// `base` with as many changes as the script has: bytes replaced, inserted or left out.
    pub(crate) fn patch(&mut self, base: &[u8]) -> Vec<u8> {
        let mut bytes = base.to_vec();
        while !self.is_over() {
            let (at, how) = (self.number(3), self.byte());
            let at = usize::try_from(at).unwrap_or(0) % (bytes.len() + 1);
            let count = usize::from(how & 0x3f);
            let (left_out, put_in) = match how >> 6 {
                0 | 1 => (count, self.take(count)),
                2 => (0, self.take(count)),
                _ => (count, &[][..]),
            };
            let end = (at + left_out).min(bytes.len());
            bytes.splice(at..end, put_in.iter().copied());
        }
        bytes
    }
}

/// The text's lines, without limit.
pub(crate) fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty())
}

/// A directory of one run, in memory where there is such a file system.
pub(crate) fn scratch() -> tempfile::TempDir {
    let memory = std::path::Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a writable directory")
}

/// Runs a future to its end.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> T {
    thread_local! {
        static RUNTIME: tokio::runtime::Runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
    }
    RUNTIME.with(|runtime| runtime.block_on(work))
}
