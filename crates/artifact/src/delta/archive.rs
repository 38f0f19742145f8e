//! From a compressed artifact to the archive inside, and back to the very same artifact.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Seek as _, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::DeltaError;
use super::method::{LEVEL_MAX, Method, Zstd};

/// Largest window that a foreign artifact may ask for: as much as the host allows (128 MiB).
const ZSTD_WINDOW_LOG_MAX: u32 = 27;

/// Read and written at once, in bytes.
const BUFFER_BYTES: usize = 256 << 10;

/// An archive that can be read at any place: the artifact itself, or unpacked into a file without
/// a name, which a crash removes.
#[derive(Debug)]
pub(super) struct Unpacked {
    pub(super) file: File,
    pub(super) length: u64,
}

impl Unpacked {
    /// Reads from any place.
    pub(super) fn read_at(&self, at: u64, piece: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(piece, at)
    }
}

/// Unpacks an artifact into a file in `scratch`; more than `bytes_max` are refused.
pub(super) fn unpack(
    artifact: &Path,
    scratch: &Path,
    bytes_max: u64,
    stopped: &dyn Fn() -> bool,
) -> Result<Unpacked, DeltaError> {
    let mut file = File::open(artifact).map_err(DeltaError::Base)?;
    let mut magic = Vec::new();
    Read::by_ref(&mut file).take(4).read_to_end(&mut magic).map_err(DeltaError::Base)?;
    file.seek(SeekFrom::Start(0)).map_err(DeltaError::Base)?;
    if !is_gzip(&magic) && !is_zstd(&magic) {
        let length = file.metadata().map_err(DeltaError::Base)?.len();
        return Ok(Unpacked { file, length });
    }
    let buffered = BufReader::with_capacity(BUFFER_BYTES, file);
    let mut reader: Box<dyn Read> = if is_gzip(&magic) {
        Box::new(flate2::read::MultiGzDecoder::new(buffered))
    } else {
        let mut decoder =
            zstd::stream::read::Decoder::with_buffer(buffered).map_err(DeltaError::Base)?;
        decoder.window_log_max(ZSTD_WINDOW_LOG_MAX).map_err(DeltaError::Base)?;
        Box::new(decoder)
    };
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
    Ok(Unpacked { file: into, length })
}

/// Whether the archive inside has to be compressed to become the artifact, and how: found by trying
/// it. Nothing when none of the ways that servers can go gives the same bytes.
pub(super) fn method_of(artifact: &Path, archive: &Unpacked) -> io::Result<Option<Method>> {
    let mut magic = Vec::new();
    File::open(artifact)?.take(4).read_to_end(&mut magic)?;
    if is_gzip(&magic) {
        // gzip's bytes depend on the program that made them, and Cohort makes none itself.
        return Ok(None);
    }
    if !is_zstd(&magic) {
        return Ok(Some(Method { zstd: None }));
    }
    // Cohort's own first. The others end at the first byte that differs, which is soon.
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
                // The disk's fault, not the way's.
                return Ok(None);
            }
        }
    }
    Ok(None)
}

fn is_gzip(magic: &[u8]) -> bool {
    magic.starts_with(&[0x1f, 0x8b])
}

fn is_zstd(magic: &[u8]) -> bool {
    magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
}

/// The way from an archive to the artifact.
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
        // A flush in between would end a block, and so change the bytes.
        Ok(())
    }
}

/// Takes bytes only as long as they are those of a file.
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
