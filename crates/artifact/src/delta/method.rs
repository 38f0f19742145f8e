//! How a delta is applied, as named in the manifest.

use std::fmt;

/// The format of the delta itself; see [`super`].
const FORMAT: &str = "segments-1";

/// Highest compression level that servers use: above, compressing takes longer than the transfer.
pub(super) const LEVEL_MAX: i32 = 9;

/// A method that this program can apply.
///
/// Text: `segments-1` if the artifact is a plain archive; otherwise followed by its compression,
/// `segments-1+zstd-10507-3`: library version 1.5.7, level 3; a `c` at the end means that the frame
/// has a checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Method {
    pub(super) zstd: Option<Zstd>,
}

/// How an archive is compressed; the library is always the one linked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Zstd {
    pub(super) level: i32,
    pub(super) checksum: bool,
}

impl Method {
    /// Parses a method; `None` if this program cannot apply it, for example because it names
    /// another version of the compression library, which may produce other bytes.
    #[must_use]
    pub fn known(text: &str) -> Option<Self> {
        let rest = text.strip_prefix(FORMAT)?;
        if rest.is_empty() {
            return Some(Self { zstd: None });
        }
        let checksum = rest.ends_with('c');
        let (_, level) = rest.trim_end_matches('c').rsplit_once('-')?;
        let level = level.parse().ok()?;
        let method = Self { zstd: Some(Zstd { level, checksum }) };
        // Formatted again, so that there is one spelling and only this library's version.
        ((1..=LEVEL_MAX).contains(&level) && method.to_string() == text).then_some(method)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(FORMAT)?;
        let Some(Zstd { level, checksum }) = self.zstd else { return Ok(()) };
        let library = zstd::zstd_safe::version_number();
        write!(f, "+zstd-{library}-{level}{}", if checksum { "c" } else { "" })
    }
}
