//! One request to one source: from the response head to verified units on disk.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cohort_artifact::UnitError;
use cohort_artifact::client::{Content, FetchError};
use cohort_base::Cause;
use cohort_core::ids::ServerId;
use cohort_transfer::{Failure, Limits, Offence, RequestId, SourceKind, UnitRun, UnitSet, span_of};
use http::StatusCode;
use tokio::time::{Instant, timeout};

use crate::body::{Awaited, Body};
use crate::budget::Budget;
use crate::frame::{ALIVE, Frame};
use crate::part::{Part, WriteError};
use crate::peers::Answer;
use crate::progress::ByteCounters;
use crate::store::hashes_length;
use crate::store_error::StoreError;

/// Most heartbeats of a parent, in a burst and per second: ten are due.
const SIGNS_MAX: u64 = 100;
const SIGNS_PER_S_MAX: u64 = 50;

/// Why a request got less than it asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error("is busy, retry after {retry_after_ms} ms")]
    Busy { retry_after_ms: u64 },
    /// The source does not have (all of) this, perhaps not yet.
    #[error("does not have it")]
    Absent,
    #[error("ignores ranges")]
    NoRanges,
    #[error("connection failed")]
    Connection(#[source] io::Error),
    /// Nothing, or too little, within the time allowed.
    #[error("no {awaited} within {ms} ms")]
    Stalled { awaited: Awaited, ms: u64 },
    /// It is slow: what arrived is kept, and the rest is requested again.
    #[error("is slow: {units} units in {ms} ms")]
    Slow { units: u32, ms: u64 },
    #[error("answered with status {0}")]
    Status(StatusCode),
    /// The response is too short, too long, or for another range.
    #[error("answered with a wrong length or range")]
    Length(#[source] Cause),
    #[error("sent wrong bytes")]
    Wrong(#[source] UnitError),
    /// Our own disk; the source is not to blame.
    #[error(transparent)]
    Disk(#[from] StoreError),
    #[error("a task of the request panicked")]
    Task(#[source] tokio::task::JoinError),
}

impl RequestError {
    /// From a transport that only says that it failed.
    pub(crate) fn other(error: impl Into<Cause>) -> Self {
        Self::Connection(io::Error::other(error))
    }

    /// What the error says about the source.
    pub(crate) fn failure(&self) -> Failure {
        match self {
            RequestError::Busy { retry_after_ms } => {
                Failure::Busy { retry_after_ms: *retry_after_ms }
            }
            RequestError::Absent => Failure::Absent,
            RequestError::NoRanges => Failure::NoRanges,
            RequestError::Slow { .. } => Failure::Slow,
            RequestError::Stalled { awaited, .. } => Failure::Misbehaved(awaited.offence()),
            RequestError::Length(_) => Failure::Misbehaved(Offence::WrongLength),
            RequestError::Wrong(_) => Failure::Misbehaved(Offence::WrongBytes),
            RequestError::Connection(_)
            | RequestError::Status(_)
            | RequestError::Disk(_)
            | RequestError::Task(_) => Failure::Unreachable,
        }
    }
}

impl From<FetchError> for RequestError {
    fn from(error: FetchError) -> Self {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        match error {
            FetchError::Absent => Self::Absent,
            FetchError::Busy { retry_after } => Self::Busy { retry_after_ms: ms(retry_after) },
            FetchError::Status { status, .. } => Self::Status(status),
            FetchError::RangeIgnored => Self::NoRanges,
            FetchError::WrongRange { .. } => Self::Length(error.into()),
            FetchError::TimedOut { limit, .. } => {
                Self::Stalled { awaited: Awaited::Answer, ms: ms(limit) }
            }
            _ => Self::other(error),
        }
    }
}

/// A request's context, apart from its response.
#[derive(Clone)]
pub(crate) struct RequestContext {
    pub(crate) kind: SourceKind,
    pub(crate) limits: Arc<Limits>,
    pub(crate) counters: Arc<ByteCounters>,
    /// Bytes that this fetch received from this kind of source.
    pub(crate) received: Arc<AtomicU64>,
    /// Limit for everything received, over all fetches.
    pub(crate) budget: Arc<Budget>,
    pub(crate) heard: Arc<Heard>,
}

/// When a request's response last progressed.
#[derive(Debug)]
pub(crate) struct Heard {
    begun: Instant,
    ms: AtomicU64,
}

impl Heard {
    pub(crate) fn new(begun: Instant) -> Self {
        Self { begun, ms: AtomicU64::new(0) }
    }

    /// In milliseconds of the fetch's clock, plus 1; 0 means never.
    pub(crate) fn at_ms(&self) -> u64 {
        self.ms.load(Ordering::Relaxed)
    }

    pub(crate) fn now(&self) {
        let ms = u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.ms.store(ms.saturating_add(1), Ordering::Relaxed);
    }
}

/// A request's measurements, even if it failed.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Measured {
    /// From the request to the response head.
    pub(crate) first_byte: Option<Duration>,
    /// From the response head to the end.
    pub(crate) elapsed: Duration,
    pub(crate) bytes: u64,
    /// Units that were correct and new.
    pub(crate) units: u32,
}

/// The result of a request's task.
pub(crate) struct Ended {
    pub(crate) id: RequestId,
    pub(crate) measured: Measured,
    /// The unit hashes if they were requested, otherwise empty.
    pub(crate) result: Result<Vec<u8>, RequestError>,
}

impl Ended {
    pub(crate) fn new(id: RequestId) -> Self {
        Self { id, measured: Measured::default(), result: Ok(Vec::new()) }
    }
}

/// Waits for the response head.
pub(crate) async fn head(
    context: &RequestContext,
    measured: &mut Measured,
    answer: impl Future<Output = Result<Answer, RequestError>>,
) -> Result<Answer, RequestError> {
    let ms = context.limits.first_byte_ms_max;
    let begun = Instant::now();
    let late = |_| RequestError::Stalled { awaited: Awaited::Answer, ms };
    let answer = timeout(Duration::from_millis(ms), answer).await.map_err(late)??;
    measured.first_byte = Some(begun.elapsed());
    Ok(answer)
}

/// Receives the units of a mirror's response: a run, or all. Each is verified and written before
/// the next is received.
pub(crate) async fn take_units(
    context: &RequestContext,
    measured: &mut Measured,
    part: &Arc<Part>,
    asked: Option<UnitRun>,
    answer: Answer,
) -> Result<Vec<u8>, RequestError> {
    let run = check_range(part, asked, &answer)?;
    let mut body = Body::new(context, measured, answer.pieces);
    let ms = context.limits.request_ms_max;
    for index in run.first..run.end() {
        let slow = body.took() >= Duration::from_millis(ms);
        if asked.is_some() && index > run.first && slow {
            return Err(RequestError::Slow { units: index - run.first, ms });
        }
        let (_, length) = part.hashes().span(index).map_err(RequestError::Wrong)?;
        let frame = body.take_unit(index, length).await?;
        keep(&mut body, part, frame, None).await?;
    }
    body.end().await?;
    Ok(Vec::new())
}

/// Receives units as the parent gets them, until it has sent every unit that was lacking, and
/// nothing else. Each is verified and written, and so available for forwarding, before the next.
pub(crate) async fn take_link(
    context: &RequestContext,
    measured: &mut Measured,
    part: &Arc<Part>,
    parent: &ServerId,
    lacks: &[UnitRun],
    answer: Answer,
) -> Result<Vec<u8>, RequestError> {
    let mut body = Body::new(context, measured, answer.pieces);
    // Every unit requested, once: otherwise it would never end.
    let mut due = UnitSet::from_runs(part.hashes().count(), lacks);
    let mut signs: u64 = 0;
    while let Some(index) = body.next_index().await? {
        if index == ALIVE {
            signs += 1;
            if signs > SIGNS_MAX + body.age().as_secs() * SIGNS_PER_S_MAX {
                return Err(RequestError::Length(format!("{signs} heartbeats").into()));
            }
            continue;
        }
        let (_, length) = part.hashes().span(index).map_err(RequestError::Wrong)?;
        if !due.remove(index) {
            let text = format!("unit {index}, which was not asked for, or came before");
            return Err(RequestError::Length(text.into()));
        }
        let frame = body.take_unit(index, length).await?;
        keep(&mut body, part, frame, Some(parent.clone())).await?;
    }
    Ok(Vec::new())
}

/// Receives a file of unit hashes, still unverified.
pub(crate) async fn take_hashes(
    context: &RequestContext,
    measured: &mut Measured,
    length: u64,
    answer: Answer,
) -> Result<Vec<u8>, RequestError> {
    let expected = hashes_length(length);
    check_length(&answer, expected)?;
    let expected = usize::try_from(expected)
        .map_err(|_| RequestError::Length("unit hashes do not fit in memory".into()))?;
    let mut body = Body::new(context, measured, answer.pieces);
    let bytes = body.take(expected, context.limits.hashes_ms_max, Awaited::Hashes).await?;
    body.end().await?;
    Ok(bytes)
}

/// Verifies and writes a unit, unless it is already here.
async fn keep(
    body: &mut Body<'_>,
    part: &Arc<Part>,
    frame: Frame,
    sender: Option<ServerId>,
) -> Result<(), RequestError> {
    if part.has(frame.index()) {
        return Ok(());
    }
    let disk = Arc::clone(part);
    let written =
        tokio::task::spawn_blocking(move || disk.write_frame(&frame, sender.as_ref())).await;
    match written.map_err(RequestError::Task)? {
        Ok(new) => body.measured.units += u32::from(new),
        Err(WriteError::Wrong(error)) => {
            body.context.counters.count_refused();
            return Err(RequestError::Wrong(error));
        }
        Err(WriteError::Disk(error)) => return Err(RequestError::Disk(error)),
    }
    Ok(())
}

/// The units in a mirror's response: those requested, or it is wrong.
fn check_range(
    part: &Part,
    asked: Option<UnitRun>,
    answer: &Answer,
) -> Result<UnitRun, RequestError> {
    let all = UnitRun { first: 0, count: part.hashes().count() };
    let run = asked.unwrap_or(all);
    let (start, length) = span_of(part.hashes().length(), run);
    match answer.content {
        Content::Whole if run != all => return Err(RequestError::NoRanges),
        Content::Whole => {}
        Content::Part { first, last, total } => {
            let right = total.is_none_or(|total| total == part.hashes().length());
            if !right || (first, last) != (start, start + length - 1) {
                let text = format!("bytes {first}-{last} of {total:?}, not {length} from {start}");
                return Err(RequestError::Length(text.into()));
            }
        }
        Content::Unchanged => return Err(RequestError::Status(StatusCode::NOT_MODIFIED)),
    }
    check_length(answer, length)?;
    Ok(run)
}

fn check_length(answer: &Answer, expected: u64) -> Result<(), RequestError> {
    match answer.length {
        Some(found) if found != expected => {
            Err(RequestError::Length(format!("{found} bytes, not {expected}").into()))
        }
        Some(_) | None => Ok(()),
    }
}
