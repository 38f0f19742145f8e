//! Reports on their way to the group: in order, once each, until somebody has written them down.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cohort_core::ids::{AppId, BootEpoch, Digest};
use cohort_core::orders::Fence;
use cohort_core::report::{Outcome, REPORT_TEXT_BYTES_MAX, Report};
use cohort_wire::agent::{CONTROL_VERSION, CommandAnswer, REPORT, ReportRequest};
use cohort_wire::http::Call;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::runner::Received;
use crate::shared::Shared;

/// Reports of one request.
const BATCH_MAX: usize = 32;
/// Reports that wait. A server's steps are few; past this its tasks wait for room.
const QUEUE_MAX: usize = 256;
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// One outcome that is to be told.
#[derive(Debug)]
struct Told {
    app: AppId,
    fence: Fence,
    attempt: u32,
    outcome: Outcome,
}

/// Takes outcomes in; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    queue: mpsc::Sender<Told>,
    confirmed: watch::Receiver<BTreeMap<AppId, Fence>>,
}

impl Reporter {
    pub(crate) fn spawn(
        shared: Arc<Shared>,
        boot_epoch: BootEpoch,
        orders: watch::Receiver<Option<Arc<Received>>>,
        stop: CancellationToken,
    ) -> Reporter {
        let (queue, waiting) = mpsc::channel(QUEUE_MAX);
        let (sender, confirmed) = watch::channel(BTreeMap::new());
        let sending = Sending { shared, boot_epoch, orders, confirmed: sender, sequence: 0 };
        tokio::spawn(async move {
            tokio::select! {
                () = stop.cancelled() => {}
                () = sending.run(waiting) => {}
            }
        });
        Reporter { queue, confirmed }
    }

    /// Tells what came of an activation, or of a look at what runs.
    pub(crate) async fn tell(&self, app: &AppId, fence: Fence, attempt: u32, mut outcome: Outcome) {
        if let Outcome::Failed { reason, output, .. } = &mut outcome {
            cut(reason);
            cut_front(output);
        }
        let told = Told { app: app.clone(), fence, attempt, outcome };
        // Full while the group cannot be reached for long: the steps wait with their reports.
        let _ = self.queue.send(told).await;
    }

    /// Tells what running checks say, if there is room: half of the queue is kept for outcomes, so
    /// that a group that cannot be reached never holds up a step. False: say it again later.
    pub(crate) async fn tell_health(&self, app: &AppId, outcome: Outcome) -> bool {
        if self.queue.capacity() <= QUEUE_MAX / 2 {
            return false;
        }
        self.tell(app, Fence::default(), 1, outcome).await;
        true
    }

    /// Tells that an artifact is whole here.
    pub(crate) async fn holds(&self, app: &AppId, artifact: &Digest) {
        let outcome = Outcome::Holds { artifact: artifact.clone() };
        self.tell(app, Fence::default(), 1, outcome).await;
    }

    /// Per app: the fence whose passed checks the group has acknowledged.
    pub(crate) fn confirmed(&self) -> watch::Receiver<BTreeMap<AppId, Fence>> {
        self.confirmed.clone()
    }
}

fn cut(text: &mut String) {
    if text.len() > REPORT_TEXT_BYTES_MAX {
        let end = (0..=REPORT_TEXT_BYTES_MAX).rev().find(|at| text.is_char_boundary(*at));
        text.truncate(end.unwrap_or(0));
    }
}

/// Of an output the end tells most.
fn cut_front(text: &mut String) {
    if text.len() > REPORT_TEXT_BYTES_MAX {
        let from = text.len() - REPORT_TEXT_BYTES_MAX;
        let start = (from..=text.len()).find(|at| text.is_char_boundary(*at));
        *text = text.split_off(start.unwrap_or(from));
    }
}

struct Sending {
    shared: Arc<Shared>,
    boot_epoch: BootEpoch,
    orders: watch::Receiver<Option<Arc<Received>>>,
    confirmed: watch::Sender<BTreeMap<AppId, Fence>>,
    sequence: u64,
}

impl Sending {
    async fn run(mut self, mut queue: mpsc::Receiver<Told>) {
        loop {
            let Some(first) = queue.recv().await else { return };
            let mut batch = vec![first];
            while batch.len() < BATCH_MAX
                && let Ok(next) = queue.try_recv()
            {
                batch.push(next);
            }
            let reports: Vec<Report> = batch.iter().map(|told| self.number(told)).collect();
            let Some(answers) = self.send(reports).await else { return };
            for (told, answer) in batch.into_iter().zip(answers) {
                // What was refused is not in the log, and confirms nothing.
                if told.outcome == Outcome::Checked && answer.rejection.is_none() {
                    self.confirmed.send_modify(|all| {
                        all.insert(told.app, told.fence);
                    });
                }
            }
        }
    }

    fn number(&mut self, told: &Told) -> Report {
        self.sequence += 1;
        Report {
            server: self.shared.server().clone(),
            boot_epoch: self.boot_epoch,
            sequence: self.sequence,
            app: told.app.clone(),
            fence: told.fence,
            attempt: told.attempt,
            outcome: told.outcome.clone(),
        }
    }

    /// Until a member says that they are in the log. None when the agent ends.
    async fn send(&mut self, reports: Vec<Report>) -> Option<Vec<CommandAnswer>> {
        let mut pause = PAUSE_MIN;
        let mut turn = 0_usize;
        loop {
            // Only a group that has spoken can be told something.
            let incarnation = match self.orders.wait_for(Option::is_some).await {
                Ok(received) => match received.as_ref() {
                    Some(received) => received.orders.incarnation,
                    None => continue,
                },
                Err(_) => return None,
            };
            let request = ReportRequest {
                version: CONTROL_VERSION,
                group: self.shared.group.clone(),
                incarnation,
                reports: reports.clone(),
            };
            let own = self.shared.server().clone();
            let mut members = self.shared.members();
            members.sort_by_key(|member| member.server != own);
            if let Some(member) = members.get(turn % members.len().max(1)) {
                let call =
                    Call::post(REPORT, &request).deadline(Duration::from_secs(6)).idempotent();
                let target = self.shared.target(&member.server, &member.address);
                match self.shared.client.call_json::<Vec<CommandAnswer>>(&target, call).await {
                    Ok(answers) => {
                        for rejection in answers.iter().filter_map(|a| a.rejection.as_ref()) {
                            tracing::warn!(rejection, "a report was refused");
                        }
                        return Some(answers);
                    }
                    Err(error) => tracing::debug!(%error, "a report was not taken yet"),
                }
            }
            turn = turn.wrapping_add(1);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}
