//! How a delta is applied, as its manifest names it.

use std::fmt;

/// The format of the delta itself, [`super`].
const FORMAT: &str = "segments-1";

/// Highest level that servers compress at: above, compressing takes longer than the transfer.
pub(super) const LEVEL_MAX: i32 = 9;

/// A method that this program can apply.
///
/// Text: `segments-1` where the artifact is a plain archive; else followed by how it is compressed,
/// `segments-1+zstd-10507-3`: library version 1.5.7, level 3; a `c` at the end stands for a
/// checksum in the frame.
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
    /// Parses a method; `None` when this program cannot apply it, also because it names another
    /// version of the compression library, which may produce other bytes.
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
