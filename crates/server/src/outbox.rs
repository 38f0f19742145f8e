//! Reports in transit to the group: in order, once each, until they are in the log.

use std::collections::{BTreeMap, VecDeque};

use cohort_core::ids::{AppId, BootEpoch, ServerId};
use cohort_core::orders::{Fence, MemberAddress};
use cohort_core::report::{Outcome, REPORT_TEXT_BYTES_MAX, Report};
use cohort_core::state::{APPS_MAX, HOLDS_MAX};

/// Reports of one request.
pub const BATCH_MAX: usize = 32;
/// Texts of the reports of one request, in bytes, unless the first has more: signed and escaped, at
/// the worst twelve times as many, they fit into it.
const BATCH_TEXT_BYTES_MAX: usize = 32 * 1024;
/// With this many reports, the outbox has no room: apps start no further step until the group has
/// received the earlier ones.
pub const QUEUE_MAX: usize = 256;
/// Most reports that the outbox ever holds; further ones are dropped. Three times the queue's size:
/// every app may have seen the last free slot and then report everything it has.
const HELD_MAX: usize = 3 * QUEUE_MAX;
/// Most reports of one app between two checks for room: its start, an outcome, its health, checks
/// on trial, what it found again, an artifact of each ordered kind (coming, granted, good), and all
/// that were lost.
const AT_ONCE_MAX: usize = 8 + HOLDS_MAX;
const _: () = assert!(QUEUE_MAX + AT_ONCE_MAX * APPS_MAX <= HELD_MAX);
/// How long the response to a request may take, in milliseconds: longer than a member tries.
pub const ANSWER_MS_MAX: u64 = 6_000;

/// Shortest pause after a request without a response, in milliseconds; doubled with each.
const PAUSE_MS_MIN: u64 = 50;
/// Longest pause, in milliseconds.
pub const PAUSE_MS_MAX: u64 = 2_000;

/// A request to a member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sending {
    pub to: MemberAddress,
    /// The oldest unacknowledged ones, oldest first.
    pub reports: Vec<Report>,
}

/// The reports of one start of an agent that the group has not acknowledged.
#[derive(Debug, Clone)]
pub struct Outbox {
    server: ServerId,
    boot_epoch: BootEpoch,
    sequence: u64,
    queue: VecDeque<Report>,
    /// How many from the front are in an open request; 0 if none is open.
    in_flight: usize,
    turn: usize,
    pause_ms: u64,
    not_before_ms: u64,
    confirmed: BTreeMap<AppId, Fence>,
}

impl Outbox {
    /// An empty outbox. `boot_epoch` numbers the starts of this server's agent.
    #[must_use]
    pub fn new(server: ServerId, boot_epoch: BootEpoch) -> Outbox {
        Outbox {
            server,
            boot_epoch,
            sequence: 0,
            queue: VecDeque::new(),
            in_flight: 0,
            turn: 0,
            pause_ms: PAUSE_MS_MIN,
            not_before_ms: 0,
            confirmed: BTreeMap::new(),
        }
    }

    /// Whether there is room for outcomes of steps.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.queue.len() < QUEUE_MAX
    }

    /// Whether there is room for news of running checks: half of the queue is reserved for
    /// outcomes, so that an unreachable group never delays a step.
    #[must_use]
    pub fn has_room_for_health(&self) -> bool {
        self.queue.len() < QUEUE_MAX / 2
    }

    /// Whether everything reported so far is acknowledged.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.queue.is_empty()
    }

    /// Queues a report of an activation's outcome, or of what runs. Check [`Self::has_room`] first.
    pub fn report(&mut self, app: &AppId, fence: Fence, attempt: u32, mut outcome: Outcome) {
        match &mut outcome {
            Outcome::Failed { reason, output, .. } => {
                keep_start(reason);
                keep_end(output);
            }
            Outcome::Health { reason, .. }
            | Outcome::HookIgnored { reason }
            | Outcome::Undone { reason, .. } => keep_start(reason),
            Outcome::Tried { failed: Some(reason), .. } => keep_start(reason),
            Outcome::Tried { failed: None, .. }
            | Outcome::Found { .. }
            | Outcome::Holds { .. }
            | Outcome::Lacks { .. }
            | Outcome::Applied
            | Outcome::Checked
            | Outcome::InService
            | Outcome::GivenBack => {}
        }
        if self.queue.len() >= HELD_MAX {
            return;
        }
        self.sequence += 1;
        self.queue.push_back(Report {
            server: self.server.clone(),
            boot_epoch: self.boot_epoch,
            sequence: self.sequence,
            app: app.clone(),
            fence,
            attempt,
            outcome,
        });
    }

    /// The next request, if one is due. The shell steps with [`Self::answered`] or
    /// [`Self::not_answered`].
    #[must_use]
    pub fn next(&mut self, now_ms: u64, members: &[MemberAddress]) -> Option<Sending> {
        if self.in_flight > 0 || self.queue.is_empty() || now_ms < self.not_before_ms {
            return None;
        }
        let mut members: Vec<&MemberAddress> = members.iter().collect();
        members.sort_by_key(|member| member.server != self.server);
        if members.is_empty() {
            self.not_before_ms = now_ms + self.pause_ms;
            return None;
        }
        let to = members[self.turn % members.len()].clone();
        let mut bytes = 0;
        let fits = self.queue.iter().take(BATCH_MAX).take_while(|report| {
            bytes += report.outcome.text_bytes();
            bytes <= BATCH_TEXT_BYTES_MAX
        });
        self.in_flight = fits.count().max(1);
        let reports = self.queue.iter().take(self.in_flight).cloned().collect();
        Some(Sending { to, reports })
    }

    /// When [`Self::next`] may have something, by the same clock; `None` while a request is open or
    /// nothing is queued.
    #[must_use]
    pub fn due_ms(&self) -> Option<u64> {
        (self.in_flight == 0 && !self.queue.is_empty()).then_some(self.not_before_ms)
    }

    /// Records that the oldest reports of the open request are in the log; `taken` says for each of
    /// them whether it was accepted. One that was refused confirms nothing; the others are sent
    /// again.
    pub fn answered(&mut self, taken: &[bool]) {
        let done = self.in_flight.min(self.queue.len()).min(taken.len());
        let reports = self.queue.drain(..done);
        for (report, taken) in reports.zip(taken) {
            if *taken && report.outcome == Outcome::Checked {
                self.confirmed.insert(report.app, report.fence);
            }
        }
        self.in_flight = 0;
        self.pause_ms = PAUSE_MS_MIN;
    }

    /// Records that the open request may have been lost: it is sent again, to the next member. The
    /// group ignores repeats.
    pub fn not_answered(&mut self, now_ms: u64) {
        self.in_flight = 0;
        self.turn = self.turn.wrapping_add(1);
        self.not_before_ms = now_ms + self.pause_ms;
        self.pause_ms = (self.pause_ms * 2).min(PAUSE_MS_MAX);
    }

    /// Per app, the fence whose passed checks the group acknowledged last.
    #[must_use]
    pub fn confirmed(&self) -> &BTreeMap<AppId, Fence> {
        &self.confirmed
    }
}

fn keep_start(text: &mut String) {
    text.truncate(text.floor_char_boundary(REPORT_TEXT_BYTES_MAX));
}

/// Keeps the end of a text, the most informative part of an output.
fn keep_end(text: &mut String) {
    let from = text.len().saturating_sub(REPORT_TEXT_BYTES_MAX);
    text.drain(..text.ceil_char_boundary(from));
}

#[cfg(test)]
#[path = "outbox_test.rs"]
mod outbox_test;
