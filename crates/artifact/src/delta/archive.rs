//! From a compressed artifact to the archive inside, and back to the same bytes.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::DeltaError;
use super::method::{LEVEL_MAX, Method, Zstd};
use crate::manifest::Format;
use crate::pack::{format_of, unpacking};

/// Bytes read or written at a time.
const BUFFER_BYTES: usize = 256 << 10;

/// An archive with random access: the artifact itself, or unpacked into an unnamed file, which does
/// not survive a crash.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) file: File,
    pub(super) length: u64,
    pub(super) format: Format,
}

impl Unpacked {
    /// Fills `piece` with the bytes from offset `at`.
    pub(super) fn read_at(&self, at: u64, piece: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(piece, at)
    }
}

/// The part of the old archive that a segment is applied to, read piece by piece.
pub(super) struct Window<'a> {
    pub(super) old: &'a Unpacked,
    /// Offset in the old archive.
    pub(super) from: u64,
    pub(super) length: u64,
}

impl Window<'_> {
    /// Fills `piece` with the bytes from `at`, an offset within the window.
    pub(super) fn read(&self, at: u64, piece: &mut [u8]) -> io::Result<()> {
        self.old.read_at(self.from + at, piece)
    }
}

/// Unpacks an artifact into a file in `scratch`; fails beyond `bytes_max`.
pub(super) fn unpack(
    artifact: &Path,
    scratch: &Path,
    bytes_max: u64,
    stopped: &dyn Fn() -> bool,
) -> Result<Unpacked, DeltaError> {
    let mut file = File::open(artifact).map_err(DeltaError::Base)?;
    let format = format_of(&mut file).map_err(DeltaError::Base)?;
    if format == Format::Tar {
        let length = file.metadata().map_err(DeltaError::Base)?.len();
        return Ok(Unpacked { file, length, format });
    }
    let mut reader = unpacking(format, file).map_err(DeltaError::Base)?;
    let mut into = tempfile::tempfile_in(scratch).map_err(DeltaError::Scratch)?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut length = 0_u64;
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(DeltaError::Base(error)),
        };
        length += read as u64;
        if length > bytes_max {
            let what = "the unpacked archive";
            return Err(DeltaError::TooLong { what, limit_bytes: bytes_max });
        }
        if stopped() {
            return Err(DeltaError::Stopped);
        }
        into.write_all(&buffer[..read]).map_err(DeltaError::Scratch)?;
    }
    Ok(Unpacked { file: into, length, format })
}

/// How a server turns the archive back into the artifact, found by trying. `None` if no method
/// known to servers reproduces the same bytes.
pub(super) fn method_of(artifact: &Path, archive: &Unpacked) -> io::Result<Option<Method>> {
    match archive.format {
        Format::Tar => return Ok(Some(Method { zstd: None })),
        // The bytes depend on the program that compressed them, and Cohort writes no gzip.
        Format::TarGz => return Ok(None),
        Format::TarZst => {}
    }
    // Cohort's own level first. The others fail early, at the first byte that differs.
    let levels = std::iter::once(3).chain((1..=LEVEL_MAX).filter(|level| *level != 3));
    for level in levels {
        for checksum in [false, true] {
            let zstd = Zstd { level, checksum };
            let mut same = Same::as_in(artifact)?;
            let mut compressing = Compress::new(&mut same, Some(zstd))?;
            let mut reader = &archive.file;
            reader.seek(SeekFrom::Start(0))?;
            let mut reader = BufReader::with_capacity(BUFFER_BYTES, reader);
            let done = io::copy(&mut reader, &mut compressing);
            if done.and_then(|_| compressing.finish()).is_ok() && same.at_end()? {
                return Ok(Some(Method { zstd: Some(zstd) }));
            }
            if !same.differs {
                // The disk failed, not the method.
                return Ok(None);
            }
        }
    }
    Ok(None)
}

/// Turns an archive into the artifact.
pub(super) enum Compress<'a> {
    Plain(BufWriter<&'a mut dyn Write>),
    Zstd(Box<zstd::stream::write::Encoder<'static, &'a mut dyn Write>>),
}

impl<'a> Compress<'a> {
    pub(super) fn new(out: &'a mut dyn Write, zstd: Option<Zstd>) -> io::Result<Self> {
        let Some(Zstd { level, checksum }) = zstd else {
            return Ok(Self::Plain(BufWriter::with_capacity(BUFFER_BYTES, out)));
        };
        let mut encoder = zstd::stream::write::Encoder::new(out, level)?;
        if checksum {
            encoder.include_checksum(true)?;
        }
        Ok(Self::Zstd(Box::new(encoder)))
    }

    pub(super) fn finish(self) -> io::Result<()> {
        match self {
            Self::Plain(mut out) => out.flush(),
            Self::Zstd(encoder) => encoder.finish().map(drop),
        }
    }
}

impl Write for Compress<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(out) => out.write(bytes),
            Self::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // Flushing early would end a block and change the bytes.
        Ok(())
    }
}

/// Compares what is written with a file, and fails at the first difference.
struct Same {
    file: BufReader<File>,
    buffer: Vec<u8>,
    differs: bool,
}

impl Same {
    fn as_in(path: &Path) -> io::Result<Self> {
        let file = BufReader::with_capacity(BUFFER_BYTES, File::open(path)?);
        Ok(Self { file, buffer: Vec::new(), differs: false })
    }

    fn at_end(&mut self) -> io::Result<bool> {
        let more = self.file.read(&mut [0])? > 0;
        self.differs |= more;
        Ok(!more)
    }
}

impl Write for Same {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buffer.resize(bytes.len(), 0);
        let read = self.file.read_exact(&mut self.buffer);
        if read.is_err() || self.buffer != bytes {
            self.differs = true;
            return Err(io::Error::other("differs"));
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
