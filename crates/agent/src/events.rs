//! What happened in the group, as the member here saw it in the log.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::Json;
use axum::extract::State as Context;
use cohort_core::Event;
use cohort_core::ids::Incarnation;
use cohort_wire::agent::{EVENTS_MAX, EVENTS_WAIT_MS_MAX, EventsAnswer, EventsRequest, Happened};
use cohort_wire::http::{ApiError, ApiJson};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::shared::Shared;

/// Events that are kept. 4,096: two rollouts of a group of 1,000 servers, in under 2 MiB.
const KEPT_MAX: usize = 4_096;
/// People and programs that may wait for events at the same time.
pub(crate) const READERS_MAX: usize = 16;

/// The last events of the group's log.
#[derive(Debug)]
pub(crate) struct EventLog {
    kept: Mutex<Kept>,
    /// The index of the newest event.
    newest: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Kept {
    events: VecDeque<Happened>,
    incarnation: Incarnation,
    /// Up to here, events may be missing.
    missing: u64,
    /// Entries up to here were applied before this agent started.
    old: u64,
}

impl Default for EventLog {
    fn default() -> Self {
        EventLog { kept: Mutex::default(), newest: watch::Sender::new(0) }
    }
}

impl EventLog {
    /// A member was opened: it will tell of entries after `applied`, and those up to `last` are not
    /// new.
    pub(crate) fn begin(&self, incarnation: Incarnation, applied: u64, last: u64) {
        let events = VecDeque::new();
        *self.kept.lock() = Kept { events, incarnation, missing: applied, old: last };
        self.newest.send_replace(applied);
    }

    /// A snapshot of this entry came instead of entries.
    pub(crate) fn skipped(&self, index: u64) {
        let mut kept = self.kept.lock();
        kept.events.clear();
        kept.missing = kept.missing.max(index);
        drop(kept);
        self.newest.send_replace(index);
    }

    pub(crate) fn happened(&self, index: u64, event: &Event) {
        if matches!(event, Event::ReportIgnored { .. } | Event::RequestRepeated { .. }) {
            return;
        }
        let mut kept = self.kept.lock();
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now_ms = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let unix_ms = (index > kept.old).then_some(now_ms);
        kept.events.push_back(Happened { index, unix_ms, event: event.clone() });
        if kept.events.len() > KEPT_MAX
            && let Some(gone) = kept.events.pop_front()
        {
            kept.missing = gone.index;
        }
        drop(kept);
        self.newest.send_replace(index);
    }

    /// Events of entries after `after`, which is of that incarnation, or the last ones.
    fn read(&self, of: Option<Incarnation>, after: Option<u64>) -> EventsAnswer {
        let kept = self.kept.lock();
        let is_other = of.is_some_and(|of| of != kept.incarnation);
        let after = after.filter(|_| !is_other);
        let from = match after {
            Some(after) => kept.events.partition_point(|it| it.index <= after),
            None => kept.events.len().saturating_sub(EVENTS_MAX),
        };
        let mut to = kept.events.len().min(from + EVENTS_MAX);
        // The rest of an entry is not left for the next answer, which begins after the entry.
        let index_at = |at: usize| kept.events.get(at).map(|it| it.index);
        while to > from && index_at(to).is_some() && index_at(to) == index_at(to - 1) {
            to += 1;
        }
        let events: Vec<Happened> = kept.events.range(from..to).cloned().collect();
        let end = events.last().map(|it| it.index).or(after).unwrap_or(kept.missing);
        let gap = is_other || after.is_some_and(|after| after < kept.missing);
        EventsAnswer { incarnation: kept.incarnation, events, gap, end }
    }
}

pub(crate) async fn events(
    Context(shared): Context<Arc<Shared>>,
    ApiJson(request): ApiJson<EventsRequest>,
) -> Result<Json<EventsAnswer>, ApiError> {
    shared.need_member()?;
    let _turn = shared.event_readers.try_acquire().map_err(|_| {
        ApiError::unavailable("busy", format!("{READERS_MAX} wait for events of this server"))
    })?;
    let wait = Duration::from_millis(request.wait_ms.min(EVENTS_WAIT_MS_MAX));
    let mut newest = shared.events.newest.subscribe();
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        newest.borrow_and_update();
        let answer = shared.events.read(request.incarnation, request.after);
        if !answer.events.is_empty() || answer.gap {
            return Ok(Json(answer));
        }
        match tokio::time::timeout_at(deadline, newest.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return Ok(Json(answer)),
        }
    }
}

#[cfg(test)]
mod events_test {
    use super::*;

    fn joined(nth: u64) -> Event {
        Event::ServerJoined { server: format!("s{nth}").parse().unwrap() }
    }

    fn indexes(answer: &EventsAnswer) -> Vec<u64> {
        answer.events.iter().map(|it| it.index).collect()
    }

    #[test]
    fn whoever_follows_sees_every_event_once_and_is_told_of_a_gap() {
        let log = EventLog::default();
        log.begin(Incarnation(1), 10, 12);
        for index in [11, 12, 12, 13] {
            log.happened(index, &joined(index));
        }
        let all = log.read(None, None);
        assert_eq!((indexes(&all), all.gap, all.end), (vec![11, 12, 12, 13], false, 13));
        let dated: Vec<bool> = all.events.iter().map(|it| it.unix_ms.is_some()).collect();
        assert_eq!(dated, [false, false, false, true], "what was applied before has no time");
        assert_eq!(indexes(&log.read(None, Some(12))), [13]);
        let nothing = log.read(Some(Incarnation(1)), Some(13));
        assert_eq!((nothing.events.len(), nothing.gap, nothing.end), (0, false, 13));
        let other = log.read(Some(Incarnation(2)), Some(13));
        assert_eq!((indexes(&other), other.gap), (vec![11, 12, 12, 13], true), "another log");
        assert!(log.read(None, Some(9)).gap, "a snapshot has replaced entry 10");
        log.happened(
            14,
            &Event::RequestRepeated { request: cohort_core::ids::RequestId("x".into()) },
        );
        assert_eq!(log.read(None, Some(13)).events.len(), 0);
    }

    #[test]
    fn an_entry_is_never_split_and_old_events_make_room() {
        let log = EventLog::default();
        log.begin(Incarnation(1), 0, 0);
        let max = EVENTS_MAX as u64;
        for index in 1..max {
            log.happened(index, &joined(index));
        }
        for nth in 0..5 {
            log.happened(max, &joined(nth));
        }
        assert_eq!(log.read(None, Some(0)).events.len(), EVENTS_MAX + 4);
        for index in 0..KEPT_MAX as u64 {
            log.happened(max + 1 + index, &joined(index));
        }
        let kept = log.read(None, Some(max - 1));
        assert!(kept.gap);
        assert_eq!(kept.events[0].index, max + 1);
        assert!(!log.read(None, Some(max)).gap);
    }
}
