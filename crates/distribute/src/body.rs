//! A response body, read within limits of time and rate.

use std::fmt;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use cohort_transfer::Offence;
use futures_util::StreamExt as _;
use tokio::time::{Instant, timeout, timeout_at};

use crate::frame::{Frame, INDEX_BYTES};
use crate::peers::ByteStream;
use crate::request::{Measured, RequestContext, RequestError};

/// How long a response may take to end after its last byte. If it does not end, only the connection
/// is lost.
const END_MS_MAX: u64 = 1_000;

/// What a request was waiting for when it timed out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Awaited {
    Answer,
    /// The next byte of the body.
    Byte,
    /// The rest of the next unit.
    Unit,
    Index,
    /// The whole file of unit hashes.
    Hashes,
}

impl Awaited {
    /// Silent if nothing arrived, slow if a part of it did.
    pub(crate) fn offence(self) -> Offence {
        match self {
            Awaited::Answer | Awaited::Byte => Offence::Silent,
            Awaited::Unit | Awaited::Index | Awaited::Hashes => Offence::Slow,
        }
    }
}

impl fmt::Display for Awaited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Awaited::Answer => "answer",
            Awaited::Byte => "byte",
            Awaited::Unit => "whole unit",
            Awaited::Index => "index of a unit",
            Awaited::Hashes => "file of unit hashes",
        })
    }
}

/// A body, read in pieces of known length. Holds one unit and one piece from the wire.
pub(crate) struct Body<'a> {
    pub(crate) context: &'a RequestContext,
    pub(crate) measured: &'a mut Measured,
    begun: Instant,
    stream: ByteStream,
    rest: Bytes,
    /// Bytes that arrived and are not yet taken out of the budget.
    owed: usize,
    /// How long this server's own limits made it wait: no source is to blame for that.
    paused: Duration,
}

impl Drop for Body<'_> {
    /// The last piece of a request is paid for by the next request.
    fn drop(&mut self) {
        self.context.budget.owe(self.owed);
    }
}

impl<'a> Body<'a> {
    pub(crate) fn new(
        context: &'a RequestContext,
        measured: &'a mut Measured,
        stream: ByteStream,
    ) -> Self {
        let (begun, rest) = (Instant::now(), Bytes::new());
        Self { context, measured, begun, stream, rest, owed: 0, paused: Duration::ZERO }
    }

    /// Time since the response started.
    pub(crate) fn age(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The same, without pauses caused by this server's own limits.
    pub(crate) fn took(&self) -> Duration {
        self.age().saturating_sub(self.paused)
    }

    /// The index of the next unit of a subscription; `None` at the end.
    pub(crate) async fn next_index(&mut self) -> Result<Option<u32>, RequestError> {
        if self.rest.is_empty() {
            self.pay().await;
            match self.next_piece().await? {
                None => return Ok(None),
                Some(piece) => self.rest = piece,
            }
        }
        let head = self.take(INDEX_BYTES, self.context.limits.unit_ms_max, Awaited::Index).await?;
        Ok(Some(u32::from_be_bytes(head.try_into().unwrap_or([0xff; INDEX_BYTES]))))
    }

    /// Waits until the budget covers what arrived, before reading more.
    async fn pay(&mut self) {
        let owed = std::mem::take(&mut self.owed);
        if owed == 0 {
            return;
        }
        let begun = Instant::now();
        self.context.budget.take(owed, || self.context.heard.now()).await;
        self.paused += begun.elapsed();
        self.context.heard.now();
    }

    /// The unit with this index.
    pub(crate) async fn take_unit(
        &mut self,
        index: u32,
        length: usize,
    ) -> Result<Frame, RequestError> {
        let room = Frame::room(index, length);
        let room = self.fill(room, length, self.context.limits.unit_ms_max, Awaited::Unit).await?;
        Ok(Frame::new(index, room))
    }

    /// Exactly `length` bytes, within `ms_max`.
    pub(crate) async fn take(
        &mut self,
        length: usize,
        ms_max: u64,
        awaited: Awaited,
    ) -> Result<Vec<u8>, RequestError> {
        self.fill(Vec::with_capacity(length), length, ms_max, awaited).await
    }

    /// `length` more bytes, within `ms_max`.
    async fn fill(
        &mut self,
        mut taken: Vec<u8>,
        length: usize,
        ms_max: u64,
        awaited: Awaited,
    ) -> Result<Vec<u8>, RequestError> {
        let mut deadline = Instant::now() + Duration::from_millis(ms_max);
        let length = taken.len() + length;
        while taken.len() < length {
            if self.rest.is_empty() {
                let paused = self.paused;
                self.pay().await;
                deadline += self.paused - paused;
                let stalled = RequestError::Stalled { awaited, ms: ms_max };
                let next = timeout_at(deadline, self.next_piece());
                self.rest = next.await.map_err(|_| stalled)??.ok_or_else(|| {
                    RequestError::Length(
                        format!("ended after {} bytes", self.measured.bytes).into(),
                    )
                })?;
            }
            let piece = self.rest.len().min(length - taken.len());
            taken.extend_from_slice(&self.rest[..piece]);
            self.rest.advance(piece);
        }
        Ok(taken)
    }

    /// Checks that nothing follows, so that the connection can be reused.
    pub(crate) async fn end(mut self) -> Result<(), RequestError> {
        let more = || RequestError::Length("it continues beyond the end".into());
        if !self.rest.is_empty() {
            return Err(more());
        }
        match timeout(Duration::from_millis(END_MS_MAX), self.next_piece()).await {
            Ok(Ok(Some(_))) => Err(more()),
            // All units are here and correct: how the connection ends does not matter.
            Ok(Ok(None) | Err(_)) | Err(_) => Ok(()),
        }
    }

    /// The next non-empty piece; `None` at the end.
    async fn next_piece(&mut self) -> Result<Option<Bytes>, RequestError> {
        let ms = self.context.limits.idle_ms_max;
        let stalled = || RequestError::Stalled { awaited: Awaited::Byte, ms };
        let idle = Instant::now() + Duration::from_millis(ms);
        loop {
            let next = timeout_at(idle, self.stream.next()).await.map_err(|_| stalled())?;
            self.measured.elapsed = self.begun.elapsed();
            match next {
                None => return Ok(None),
                Some(Err(error)) => return Err(RequestError::Connection(error)),
                Some(Ok(piece)) if piece.is_empty() => {}
                Some(Ok(piece)) => {
                    let bytes = piece.len() as u64;
                    self.measured.bytes += bytes;
                    self.context.counters.count(self.context.kind, bytes);
                    self.context.received.fetch_add(bytes, Ordering::Relaxed);
                    self.context.heard.now();
                    self.owed += piece.len();
                    return Ok(Some(piece));
                }
            }
        }
    }
}
