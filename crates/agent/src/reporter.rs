//! Carries the outbox to the group.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use cohort_core::ids::{AppId, Digest, Incarnation};
use cohort_core::orders::{Fence, MemberAddress};
use cohort_core::report::Outcome;
use cohort_host::boot_time_ms;
use cohort_server::outbox::{ANSWER_MS_MAX, Outbox, Sending};
use cohort_wire::agent::{CommandAnswer, REPORT, Submission, ToGroup};
use cohort_wire::http::{Call, CallError};
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::shared::Shared;

/// Takes reports in; cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Reporter {
    outbox: Arc<Mutex<Outbox>>,
    queued: watch::Sender<()>,
    confirmed: watch::Sender<BTreeMap<AppId, Fence>>,
}

impl Reporter {
    pub(crate) fn spawn(shared: &Arc<Shared>) -> Reporter {
        let outbox = Outbox::new(shared.server().clone(), shared.boot_epoch);
        let reporter = Reporter {
            outbox: Arc::new(Mutex::new(outbox)),
            queued: watch::Sender::new(()),
            confirmed: watch::Sender::new(BTreeMap::new()),
        };
        shared.tasks.spawn("reporter", reporter.clone().run(Arc::clone(shared)));
        reporter
    }

    fn with<T>(&self, act: impl FnOnce(&mut Outbox) -> T) -> T {
        act(&mut self.outbox.lock())
    }

    /// Whether there is room for outcomes, and for news of running checks.
    pub(crate) fn room(&self) -> (bool, bool) {
        self.with(|outbox| (outbox.has_room(), outbox.has_room_for_health()))
    }

    /// Queues a report. Look at [`Self::room`] before something new is begun.
    pub(crate) fn report(&self, app: &AppId, fence: Fence, attempt: u32, outcome: Outcome) {
        self.with(|outbox| outbox.report(app, fence, attempt, outcome));
        self.queued.send_replace(());
    }

    /// Reports that an artifact is whole here.
    pub(crate) fn holds(&self, app: &AppId, artifact: Digest) {
        self.report(app, Fence::default(), 1, Outcome::Holds { artifact });
    }

    /// Reports that an artifact is not here, although the group believes so.
    pub(crate) fn lacks(&self, app: &AppId, artifact: Digest) {
        self.report(app, Fence::default(), 1, Outcome::Lacks { artifact });
    }

    /// Per app: the fence whose passed checks the group has acknowledged. Changes with every
    /// answer, as room does.
    pub(crate) fn confirmed(&self) -> watch::Receiver<BTreeMap<AppId, Fence>> {
        self.confirmed.subscribe()
    }

    async fn run(self, shared: Arc<Shared>) {
        let mut orders = shared.orders.subscribe();
        let mut queued = self.queued.subscribe();
        let complaint = &shared.complaints.no_reports;
        loop {
            queued.mark_unchanged();
            // Only a group that has spoken can be told something.
            let Ok(incarnation) = orders
                .wait_for(Option::is_some)
                .await
                .map(|received| received.as_ref().map(|received| received.orders.incarnation))
            else {
                return;
            };
            let members = shared.members();
            let next = self.with(|outbox| outbox.next(boot_time_ms(), &members));
            if let (Some(sending), Some(incarnation)) = (next, incarnation) {
                let patience = 2 * members.len();
                let taken = match send(&shared, incarnation, sending).await {
                    Ok(taken) => {
                        complaint.lock().ended("a member of the group accepts reports again");
                        taken
                    }
                    Err(error) => {
                        let what = "the group does not accept reports";
                        complaint.lock().after(patience, what, &error);
                        None
                    }
                };
                let confirmed = self.with(|outbox| match taken {
                    Some(taken) => {
                        outbox.answered(&taken);
                        Some(outbox.confirmed().clone())
                    }
                    None => {
                        outbox.not_answered(boot_time_ms());
                        None
                    }
                });
                if let Some(confirmed) = confirmed {
                    self.confirmed.send_replace(confirmed);
                }
                continue;
            }
            let due_ms = self.with(|outbox| outbox.due_ms());
            let due = async {
                match due_ms {
                    Some(at_ms) => {
                        let left_ms = at_ms.saturating_sub(boot_time_ms());
                        tokio::time::sleep(Duration::from_millis(left_ms)).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                _ = queued.changed() => {}
            }
        }
    }
}

/// Which of the oldest reports were accepted; `None` when the answer does not fit them.
async fn send(
    shared: &Shared,
    incarnation: Incarnation,
    sending: Sending,
) -> Result<Option<Vec<bool>>, CallError> {
    let sent = sending.reports.len();
    let MemberAddress { server, address, .. } = &sending.to;
    let sign = |report| {
        shared.sign(address, Submission::Report { life: shared.life, incarnation, report })
    };
    let signed = sending.reports.into_iter().map(sign).collect::<Result<Vec<_>, _>>()?;
    let call = Call::post(REPORT, &ToGroup::new(&shared.group, signed));
    let call = call.deadline(Duration::from_millis(ANSWER_MS_MAX)).idempotent();
    let answers: Vec<CommandAnswer> = shared.call_member(server, address, call).await?;
    if !(1..=sent).contains(&answers.len()) {
        let (answered, member) = (answers.len(), &sending.to.server);
        tracing::warn!(sent, answered, %member, "not as many answers as reports");
        return Ok(None);
    }
    for rejection in answers.iter().filter_map(|a| a.rejection.as_ref()) {
        tracing::warn!(?rejection, "report rejected");
    }
    Ok(Some(answers.iter().map(|answer| answer.rejection.is_none()).collect()))
}

#[cfg(test)]
#[path = "reporter_test.rs"]
mod reporter_test;
