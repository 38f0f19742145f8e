//! The mirrors: which to ask first, and how.
//!
//! The list remembers, for all fetches of this server, each mirror's time to the first byte and its
//! consecutive failures, so that a fetch starts where the last one succeeded.

use std::time::{Duration, Instant};

use cohort_artifact::client::{Mirror, MirrorClient, Wanted};
use cohort_artifact::{blob_path, units_path};
use cohort_core::ids::Digest;
use parking_lot::Mutex;

use crate::peers::Answer;
use crate::request::RequestError;

/// Most mirrors; a longer list is a mistake.
pub const MIRRORS_MAX: usize = 64;

/// The current mirror is replaced only by one that responds in less than half the time.
const STICKY_FACTOR: u32 = 2;

/// A mirror's failures are forgotten after this long.
const FORGIVE: Duration = Duration::from_secs(300);

/// Why a list of mirrors is rejected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MirrorError {
    #[error("{count} mirrors are more than {MIRRORS_MAX}")]
    TooMany { count: usize },
}

/// One mirror's recent record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct MirrorRecord {
    /// Smoothed time from the request to the first byte; `None` before its first response.
    pub first_byte: Option<Duration>,
    /// Failures since it last delivered.
    pub failures: u32,
    pub failed_at: Option<Instant>,
}

/// The mirrors of the repository, in the order of the configuration.
#[derive(Debug)]
pub struct MirrorList {
    mirrors: Vec<Mirror>,
    client: MirrorClient,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    records: Vec<MirrorRecord>,
    current: Option<usize>,
}

impl MirrorList {
    /// A list of mirrors that are read by `client`.
    ///
    /// # Errors
    /// If there are too many.
    pub fn new(mirrors: Vec<Mirror>, client: MirrorClient) -> Result<Self, MirrorError> {
        let count = mirrors.len();
        if count > MIRRORS_MAX {
            return Err(MirrorError::TooMany { count });
        }
        let state = State { records: vec![MirrorRecord::default(); count], current: None };
        Ok(Self { mirrors, client, state: Mutex::new(state) })
    }

    /// A mirror's display name: its address without secrets.
    #[must_use]
    pub fn name(&self, index: usize) -> String {
        self.mirrors.get(index).map_or_else(|| format!("#{index}"), ToString::to_string)
    }

    /// Indices into the configured list, the preferred mirror first.
    pub(crate) fn ranked(&self) -> Vec<usize> {
        let mut state = self.state.lock();
        for record in &mut state.records {
            if record.failed_at.is_some_and(|at| at.elapsed() >= FORGIVE) {
                *record = MirrorRecord::default();
            }
        }
        rank(&state.records, state.current)
    }

    /// Records the time to a mirror's first byte.
    pub(crate) fn answered(&self, index: usize, first_byte: Duration) {
        let mut state = self.state.lock();
        let Some(record) = state.records.get_mut(index) else { return };
        record.first_byte = Some(match record.first_byte {
            // The newest weighs a quarter: one slow response does not make a slow mirror.
            Some(before) => (before * 3 + first_byte) / 4,
            None => first_byte,
        });
    }

    /// Records a good unit, for a request sent at `began`. A later failure stands: what was in
    /// flight says nothing about what comes after.
    pub(crate) fn delivered(&self, index: usize, began: Instant) {
        let mut state = self.state.lock();
        let Some(record) = state.records.get_mut(index) else { return };
        if record.failed_at.is_none_or(|failed| failed < began) {
            (record.failures, record.failed_at) = (0, None);
            state.current = Some(index);
        }
    }

    /// Records a failed request: the mirror is asked after those with fewer failures.
    pub(crate) fn failed(&self, index: usize) {
        let mut state = self.state.lock();
        if let Some(record) = state.records.get_mut(index) {
            record.failures = record.failures.saturating_add(1);
            record.failed_at = Some(Instant::now());
            if state.current == Some(index) {
                state.current = None;
            }
        }
    }

    /// Requests `length` bytes of an artifact from `start`; with no range, all of them.
    pub(crate) async fn get_blob(
        &self,
        index: usize,
        digest: &Digest,
        span: Option<(u64, u64)>,
    ) -> Result<Answer, RequestError> {
        let range = span.map(|(start, length)| (start, start + length - 1));
        self.get(index, &blob_path(digest), range).await
    }

    /// Requests an artifact's unit hashes.
    pub(crate) async fn get_hashes(
        &self,
        index: usize,
        digest: &Digest,
    ) -> Result<Answer, RequestError> {
        self.get(index, &units_path(digest), None).await
    }

    async fn get(
        &self,
        index: usize,
        path: &str,
        range: Option<(u64, u64)>,
    ) -> Result<Answer, RequestError> {
        let absent = || RequestError::other("no such mirror");
        let mirror = self.mirrors.get(index).ok_or_else(absent)?;
        let wanted = Wanted { range, ..Wanted::default() };
        let answer = self.client.get(mirror, path, &wanted).await?;
        let (content, length) = (answer.content, answer.length);
        Ok(Answer { content, length, pieces: answer.into_stream() })
    }
}

/// Orders mirrors: fewest failures first, then the current one unless another responds in less than
/// half its time, then by time to the first byte (those never asked last), then as configured.
pub(crate) fn rank(records: &[MirrorRecord], current: Option<usize>) -> Vec<usize> {
    let mut order: Vec<usize> = (0..records.len()).collect();
    let time = |index: usize| records[index].first_byte.unwrap_or(Duration::MAX);
    order.sort_by_key(|&index| (records[index].failures, time(index), index));
    let Some(current) = current.filter(|index| *index < records.len()) else { return order };
    let best = order[0];
    let stays = records[current].failures <= records[best].failures
        && time(current) <= time(best).saturating_mul(STICKY_FACTOR);
    if stays {
        order.retain(|index| *index != current);
        order.insert(0, current);
    }
    order
}
