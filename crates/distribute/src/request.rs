//! One request to one source: from the answer's head to verified units on disk.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use cohort_artifact::{UNIT_BYTES, UnitError};
use cohort_core::ids::ServerId;
use futures_util::StreamExt as _;
use http::header::{CONTENT_LENGTH, CONTENT_RANGE, RETRY_AFTER};
use http::{HeaderMap, StatusCode};
use tokio::time::{Instant, timeout, timeout_at};

use crate::budget::Budget;
use crate::frame::{ALIVE, Frame, INDEX_BYTES};
use crate::limits::Limits;
use crate::part::{Part, WriteError};
use crate::plan::SourceKind;
use crate::progress::ByteCounters;
use crate::store::hashes_length;
use crate::store_error::StoreError;
use crate::transport::ByteStream;
use crate::unit_set::{UnitRun, UnitSet};

/// `Retry-After` without a number that can be read.
const RETRY_AFTER_MS: u64 = 1_000;

/// Signs of life that a parent may give at once, and in a second: ten are due.
const SIGNS_MAX: u64 = 100;
const SIGNS_PER_S_MAX: u64 = 50;

/// How long an answer may take to end after its last byte; a source that does not end it loses the
/// connection, nothing else.
const END_MS_MAX: u64 = 1_000;

/// Why a request got less than it asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RequestError {
    /// It asks to be left alone for a while.
    #[error("is busy and asks to come back in {retry_after_ms} ms")]
    Busy {
        /// After this long, in milliseconds.
        retry_after_ms: u64,
    },
    /// It has not got (all of) this, perhaps not yet.
    #[error("has not got it")]
    Absent,
    /// It answers everything when asked for a range.
    #[error("ignores ranges")]
    RangesIgnored,
    /// No connection, or it broke.
    #[error("connection failed: {0}")]
    Connection(#[source] io::Error),
    /// Nothing, or too little, within a time.
    #[error("no {what} within {ms} ms")]
    Stalled {
        /// What was waited for.
        what: &'static str,
        /// For how long, in milliseconds.
        ms: u64,
    },
    /// It is slow: what came is kept, the rest is shared out anew.
    #[error("is slow: {units} units in {ms} ms")]
    Slow {
        /// Units that came.
        units: u32,
        /// In this time, in milliseconds.
        ms: u64,
    },
    /// A status that is no answer.
    #[error("answered with status {0}")]
    Status(StatusCode),
    /// The answer is shorter or longer than it has to be, or of another range.
    #[error("answered with a wrong length or range: {0}")]
    Length(String),
    /// Wrong bytes.
    #[error("sent wrong bytes: {0}")]
    Wrong(#[source] UnitError),
    /// Our own disk, no fault of the source.
    #[error(transparent)]
    Disk(#[from] StoreError),
}

/// What a request needs beside its answer.
#[derive(Clone)]
pub(crate) struct RequestContext {
    pub(crate) kind: SourceKind,
    pub(crate) limits: Arc<Limits>,
    pub(crate) counters: Arc<ByteCounters>,
    /// Bytes that this fetch received from this kind of source.
    pub(crate) received: Arc<AtomicU64>,
    /// How fast everything together may be received.
    pub(crate) budget: Arc<Budget>,
    /// When something was last received, in milliseconds of the fetch's own clock.
    pub(crate) heard: Arc<Heard>,
}

/// When something was last received.
#[derive(Debug)]
pub(crate) struct Heard {
    begun: Instant,
    ms: AtomicU64,
}

impl Heard {
    pub(crate) fn new(begun: Instant) -> Self {
        Self { begun, ms: AtomicU64::new(0) }
    }

    /// In milliseconds of the fetch's own clock; 0: never.
    pub(crate) fn at_ms(&self) -> u64 {
        self.ms.load(Ordering::Relaxed)
    }

    pub(crate) fn now(&self) {
        let ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.ms.store(ms.saturating_add(1), Ordering::Relaxed);
    }
}

/// What a request measured, also when it failed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Measured {
    /// From asking to the head of the answer.
    pub(crate) first_byte: Option<Duration>,
    /// From the head of the answer to its end.
    pub(crate) elapsed: Duration,
    /// Bytes of the body.
    pub(crate) bytes: u64,
    /// Units that were right and new.
    pub(crate) units: u32,
}

/// What was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Asked {
    /// A run of units.
    Run(UnitRun),
    /// Everything, without a range.
    Whole,
}

/// Waits for the head of an answer, and tells refusals.
pub(crate) async fn head(
    context: &RequestContext,
    measured: &mut Measured,
    answer: impl Future<Output = io::Result<http::Response<ByteStream>>>,
) -> Result<http::Response<ByteStream>, RequestError> {
    let ms = context.limits.first_byte_ms_max;
    let begun = Instant::now();
    let answer = timeout(Duration::from_millis(ms), answer)
        .await
        .map_err(|_| RequestError::Stalled { what: "answer", ms })?
        .map_err(RequestError::Connection)?;
    measured.first_byte = Some(begun.elapsed());
    match answer.status() {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(answer),
        StatusCode::NOT_FOUND => Err(RequestError::Absent),
        StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS => {
            let retry_after_ms = retry_after_ms(answer.headers());
            Err(RequestError::Busy { retry_after_ms })
        }
        status => Err(RequestError::Status(status)),
    }
}

/// Takes the units of an answer: each is verified and written before the next is taken.
pub(crate) async fn take_units(
    context: &RequestContext,
    measured: &mut Measured,
    part: &Arc<Part>,
    asked: Asked,
    answer: http::Response<ByteStream>,
) -> Result<(), RequestError> {
    let run = match context.kind {
        SourceKind::Mirror => mirror_run(part, asked, &answer)?,
        SourceKind::Peer => peer_run(part, asked, &answer)?,
    };
    let mut body = Body::new(context, measured, answer.into_body());
    let patience = Duration::from_millis(context.limits.request_ms_max);
    for index in run.first..run.end() {
        let took = body.begun.elapsed().saturating_sub(body.paused);
        if asked != Asked::Whole && index > run.first && took >= patience {
            let ms = context.limits.request_ms_max;
            return Err(RequestError::Slow { units: index - run.first, ms });
        }
        let (_, length) = part.hashes().span(index).map_err(RequestError::Wrong)?;
        let frame = body.take_unit(index, length).await?;
        if part.has(index) {
            continue;
        }
        let disk = Arc::clone(part);
        match blocking(move || disk.write_frame(&frame, None)).await? {
            Ok(new) => body.measured.units += u32::from(new),
            Err(WriteError::Wrong(error)) => {
                context.counters.count_refused();
                return Err(RequestError::Wrong(error));
            }
            Err(WriteError::Disk(error)) => return Err(RequestError::Disk(error)),
        }
    }
    body.end().await
}

/// Takes what a parent sends, unit by unit as it gets them, until it has sent everything that was
/// lacking, and nothing else. Each is verified and written, and with that free to be passed on, before the next.
pub(crate) async fn take_link(
    context: &RequestContext,
    measured: &mut Measured,
    part: &Arc<Part>,
    parent: &ServerId,
    lacks: &[UnitRun],
    answer: http::Response<ByteStream>,
) -> Result<(), RequestError> {
    let mut body = Body::new(context, measured, answer.into_body());
    // Every unit that was asked for, once: what goes beyond has no end.
    let mut due = UnitSet::from_runs(part.hashes().count(), lacks);
    let mut signs: u64 = 0;
    loop {
        if body.rest.is_empty() {
            body.pay().await;
            match body.next_piece().await? {
                None => return Ok(()),
                Some(piece) => body.rest = piece,
            }
        }
        let head = body.take(INDEX_BYTES, context.limits.unit_ms_max, "index of a unit").await?;
        let index = u32::from_be_bytes(head.try_into().unwrap_or([0xff; INDEX_BYTES]));
        if index == ALIVE {
            signs += 1;
            let most = SIGNS_MAX + body.begun.elapsed().as_secs() * SIGNS_PER_S_MAX;
            if signs > most {
                return Err(RequestError::Length(format!("{signs} signs of life")));
            }
            continue;
        }
        let (_, length) = part.hashes().span(index).map_err(RequestError::Wrong)?;
        if !due.remove(index) {
            let text = format!("unit {index}, which was not asked for, or came before");
            return Err(RequestError::Length(text));
        }
        let frame = body.take_unit(index, length).await?;
        if part.has(index) {
            continue;
        }
        let (disk, sender) = (Arc::clone(part), parent.clone());
        match blocking(move || disk.write_frame(&frame, Some(&sender))).await? {
            Ok(new) => body.measured.units += u32::from(new),
            Err(WriteError::Wrong(error)) => {
                context.counters.count_refused();
                return Err(RequestError::Wrong(error));
            }
            Err(WriteError::Disk(error)) => return Err(RequestError::Disk(error)),
        }
    }
}

/// Takes a file of unit hashes; it is not verified yet.
pub(crate) async fn take_hashes(
    context: &RequestContext,
    measured: &mut Measured,
    length: u64,
    answer: http::Response<ByteStream>,
) -> Result<Vec<u8>, RequestError> {
    let expected = hashes_length(length);
    if let Some(found) = content_length(answer.headers()).filter(|found| *found != expected) {
        let text = format!("{found} bytes of unit hashes, not {expected}");
        return Err(RequestError::Length(text));
    }
    let expected = usize::try_from(expected)
        .map_err(|_| RequestError::Length("unit hashes do not fit in memory".to_owned()))?;
    let mut body = Body::new(context, measured, answer.into_body());
    let bytes = body.take(expected, context.limits.hashes_ms_max, "file of unit hashes").await?;
    body.end().await?;
    Ok(bytes)
}

/// Runs something that blocks.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, RequestError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| RequestError::Connection(io::Error::other(error)))
}

/// Which units a mirror's answer holds: all that were asked for, or it is wrong.
fn mirror_run(
    part: &Part,
    asked: Asked,
    answer: &http::Response<ByteStream>,
) -> Result<UnitRun, RequestError> {
    let hashes = part.hashes();
    let (count, total) = (hashes.count(), hashes.length());
    let all = UnitRun { first: 0, count };
    let run = match asked {
        Asked::Run(run) => run,
        Asked::Whole => all,
    };
    let (start, length) = span_of(total, run);
    let whole = answer.status() == StatusCode::OK;
    if whole && run != all {
        return Err(RequestError::RangesIgnored);
    }
    if !whole {
        let range = answer.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
        let expected = format!("bytes {start}-{}/", start + length - 1);
        let right = range.and_then(|range| range.strip_prefix(&expected));
        if !right.is_some_and(|end| end == "*" || end == total.to_string()) {
            let found = range.map_or("none", |range| range.get(..80).unwrap_or(range));
            return Err(RequestError::Length(format!("range {found}, not {expected}{total}")));
        }
    }
    check_length(answer.headers(), length)?;
    Ok(run)
}

/// Which units a peer's answer holds: the first of those that were asked for, at least one.
fn peer_run(
    part: &Part,
    asked: Asked,
    answer: &http::Response<ByteStream>,
) -> Result<UnitRun, RequestError> {
    let hashes = part.hashes();
    let run = match asked {
        Asked::Run(run) => run,
        Asked::Whole => UnitRun { first: 0, count: hashes.count() },
    };
    let (start, length) = span_of(hashes.length(), run);
    let Some(found) = content_length(answer.headers()) else {
        return Err(RequestError::Length("no content-length".to_owned()));
    };
    let ends_with_unit = (start + found).is_multiple_of(u64::from(UNIT_BYTES));
    if found == 0 || found > length || !(ends_with_unit || found == length) {
        return Err(RequestError::Length(format!("{found} bytes, not {length}")));
    }
    let count = found.div_ceil(u64::from(UNIT_BYTES));
    Ok(UnitRun { first: run.first, count: u32::try_from(count).unwrap_or(run.count) })
}

fn check_length(headers: &HeaderMap, expected: u64) -> Result<(), RequestError> {
    match content_length(headers) {
        Some(found) if found != expected => {
            Err(RequestError::Length(format!("{found} bytes, not {expected}")))
        }
        Some(_) | None => Ok(()),
    }
}

/// First byte and number of bytes of a run of units, in an artifact of `total` bytes.
pub(crate) fn span_of(total: u64, run: UnitRun) -> (u64, u64) {
    let start = u64::from(run.first) * u64::from(UNIT_BYTES);
    let end = (u64::from(run.end()) * u64::from(UNIT_BYTES)).min(total);
    (start, end.saturating_sub(start))
}

fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

fn retry_after_ms(headers: &HeaderMap) -> u64 {
    let value = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let seconds = value.and_then(|value| value.trim().parse::<u64>().ok());
    seconds.map_or(RETRY_AFTER_MS, |seconds| seconds.saturating_mul(1_000))
}

/// A body that is read in pieces of a known length. Holds one unit and one piece off the wire.
struct Body<'a> {
    context: &'a RequestContext,
    measured: &'a mut Measured,
    begun: Instant,
    stream: ByteStream,
    rest: Bytes,
    /// Bytes that came and are not yet taken out of the budget.
    owed: usize,
    /// How long this server's own limits made it wait: no source is blamed for that.
    paused: Duration,
}

impl Drop for Body<'_> {
    /// The last piece of a request is paid for by the next one.
    fn drop(&mut self) {
        self.context.budget.owe(self.owed);
    }
}

impl<'a> Body<'a> {
    fn new(context: &'a RequestContext, measured: &'a mut Measured, stream: ByteStream) -> Self {
        let (begun, rest) = (Instant::now(), Bytes::new());
        Self { context, measured, begun, stream, rest, owed: 0, paused: Duration::ZERO }
    }

    /// Waits until the budget bears what came, before more of it is read.
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

    /// The unit of an index.
    async fn take_unit(&mut self, index: u32, length: usize) -> Result<Frame, RequestError> {
        let room = Frame::room(index, length);
        let room = self.fill(room, length, self.context.limits.unit_ms_max, "whole unit").await?;
        Ok(Frame::new(index, room))
    }

    /// Exactly `length` bytes, within `ms_max`.
    async fn take(
        &mut self,
        length: usize,
        ms_max: u64,
        what: &'static str,
    ) -> Result<Vec<u8>, RequestError> {
        self.fill(Vec::with_capacity(length), length, ms_max, what).await
    }

    /// `length` bytes more, within `ms_max`.
    async fn fill(
        &mut self,
        mut taken: Vec<u8>,
        length: usize,
        ms_max: u64,
        what: &'static str,
    ) -> Result<Vec<u8>, RequestError> {
        let mut deadline = Instant::now() + Duration::from_millis(ms_max);
        let length = taken.len() + length;
        while taken.len() < length {
            if self.rest.is_empty() {
                let paused = self.paused;
                self.pay().await;
                deadline += self.paused - paused;
                let stalled = RequestError::Stalled { what, ms: ms_max };
                let next = timeout_at(deadline, self.next_piece());
                self.rest = next.await.map_err(|_| stalled)??.ok_or_else(|| {
                    RequestError::Length(format!("ended after {} bytes", self.measured.bytes))
                })?;
            }
            let piece = self.rest.len().min(length - taken.len());
            taken.extend_from_slice(&self.rest[..piece]);
            self.rest.advance(piece);
        }
        Ok(taken)
    }

    /// Sees to it that nothing follows, so that the connection can be used again.
    async fn end(mut self) -> Result<(), RequestError> {
        let more = || RequestError::Length("it goes on beyond the end".to_owned());
        if !self.rest.is_empty() {
            return Err(more());
        }
        match timeout(Duration::from_millis(END_MS_MAX), self.next_piece()).await {
            Ok(Ok(Some(_))) => Err(more()),
            // All units are there and right: how the connection ends does not matter.
            Ok(Ok(None) | Err(_)) | Err(_) => Ok(()),
        }
    }

    /// The next piece that is not empty; nothing at the end.
    async fn next_piece(&mut self) -> Result<Option<Bytes>, RequestError> {
        let ms = self.context.limits.idle_ms_max;
        let stalled = || RequestError::Stalled { what: "byte", ms };
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
