//! A mirror's response, read in pieces of known length.

use std::io;
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use tokio::time::{Instant, timeout, timeout_at};

use super::FetchError;

/// Which bytes of the file the body contains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    Whole,
    /// A part: what was requested, or less at the end of the file.
    Part {
        first: u64,
        last: u64,
        /// Length of the file in bytes, if announced.
        total: Option<u64>,
    },
    /// Nothing: the caller's copy is up to date.
    Unchanged,
}

/// A response whose head has arrived. Dropping it ends the request.
pub struct Answer {
    /// What the body contains.
    pub content: Content,
    /// Bytes of the body, if announced.
    pub length: Option<u64>,
    /// Tag of the file, for the next request.
    pub etag: Option<String>,
    /// Modification time, as the mirror wrote it.
    pub modified: Option<String>,
    pub(super) pieces: BoxStream<'static, Result<Bytes, FetchError>>,
    /// Bytes received but not yet returned.
    pub(super) rest: Bytes,
    /// Longest pause within the body.
    pub(super) idle: Duration,
}

impl Answer {
    /// Exactly `length` bytes, or fewer at the end of the body.
    ///
    /// # Errors
    /// If they do not arrive within `time`, or the connection breaks.
    pub async fn at_most(&mut self, length: usize, time: Duration) -> Result<Bytes, FetchError> {
        let deadline = Instant::now() + time;
        let mut taken = BytesMut::new();
        while taken.len() < length {
            if self.rest.is_empty() {
                let late = FetchError::TimedOut { what: "end of the bytes", limit: time };
                match timeout_at(deadline, self.piece()).await.map_err(|_| late)?? {
                    Some(piece) => self.rest = piece,
                    None => break,
                }
            }
            let now = self.rest.len().min(length - taken.len());
            if taken.is_empty() && now == length {
                // The common case of a small file in one piece: no copy.
                return Ok(self.rest.split_to(now));
            }
            taken.extend_from_slice(&self.rest[..now]);
            self.rest.advance(now);
        }
        Ok(taken.freeze())
    }

    /// The rest of the body.
    ///
    /// # Errors
    /// If it exceeds `bytes_max`, does not arrive within `time`, or the connection breaks.
    pub async fn rest(&mut self, bytes_max: u64, time: Duration) -> Result<Bytes, FetchError> {
        let too_large = FetchError::TooLarge { limit_bytes: bytes_max };
        if self.length.is_some_and(|length| length > bytes_max) {
            return Err(too_large);
        }
        // One more byte shows that the body is too long.
        let wanted = usize::try_from(bytes_max.saturating_add(1)).unwrap_or(usize::MAX);
        let bytes = self.at_most(wanted, time).await?;
        if bytes.len() < wanted { Ok(bytes) } else { Err(too_large) }
    }

    /// The next bytes as they arrive; `None` at the end.
    ///
    /// # Errors
    /// If nothing arrives for too long, or the connection breaks.
    pub async fn piece(&mut self) -> Result<Option<Bytes>, FetchError> {
        if !self.rest.is_empty() {
            return Ok(Some(std::mem::take(&mut self.rest)));
        }
        let late = |_| FetchError::TimedOut { what: "byte", limit: self.idle };
        timeout(self.idle, self.pieces.next()).await.map_err(late)?.transpose()
    }

    /// The body as a stream without limits, for callers with their own.
    pub fn into_stream(self) -> BoxStream<'static, io::Result<Bytes>> {
        self.pieces.map_err(io::Error::other).boxed()
    }
}
