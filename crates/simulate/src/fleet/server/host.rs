//! The virtual host: does for an app what the agent decided, and writes it down.

use cohort_core::ids::{AppId, Digest};
use cohort_core::orders::ActivationOrder;
use cohort_core::report::Step;
use cohort_core::steps::reported_when_done;
use cohort_core::steps::{AppRecord, BootTime, Failure, Progress, Reached, StepAction};
use cohort_server::app::{App, Booted, Effect, LOOK_MS_MAX, Running};

use super::{
    AppAgent, Around, Changes, OWES, READY_WITHOUT_ORDERS_AFTER_MS, Server, Service, TWICE, Working,
};
use crate::fleet::chaos::Mutation;

/// How long a service has to be back before changing it again takes anything away, in milliseconds:
/// the group acts on what it last heard.
const RECOVERED_MS: u64 = 5_000;

/// How long a service takes to answer after a start of its machine, in milliseconds.
const COLD_MS: [u64; 3] = [0, 1_000, 20_000];

impl Server {
    /// The host's boot of one app: brings up what ran, and tells what it found.
    pub(super) fn boot(&mut self, app: &AppId) {
        let record = self.disk.apps[app].clone();
        let release = record.local.current.clone();
        let service = self.services.entry(app.clone()).or_default();
        let mut started = false;
        if release.is_some() && !record.under_way() {
            service.release.clone_from(&release);
            started = !service.up;
            service.up = true;
        }
        if started {
            let cold_ms = COLD_MS[usize::try_from(self.boots).unwrap_or(0) % COLD_MS.len()];
            service.cold_until_ms = Some(self.now_ms + cold_ms);
        }
        let in_service = release.is_some() && record.takes_traffic().is_ok();
        // A starting agent is not ready until it knows better.
        (service.traffic, service.unfit) = (false, false);
        let here = AppAgent {
            app: App::new(
                self.now_ms,
                READY_WITHOUT_ORDERS_AFTER_MS,
                Booted { in_service, started },
            ),
            record,
            reached: Reached::new(self.now_ms),
            running: None,
            watched: None,
            tried: None,
            doing: None,
            laters: std::collections::BTreeMap::new(),
            looked: None,
        };
        self.agent.apps.insert(app.clone(), here);
    }

    pub(super) fn tick_app(&mut self, app: &AppId, around: &Around<'_>) {
        if let Some((running, working)) = &self.agent.apps[app].running {
            let interrupted_ms = running.interrupted_at_ms(app, self.agent.received.as_ref());
            let cancelled = interrupted_ms.is_some_and(|at| at <= around.now_ms)
                && (working.step != Step::Prepare || working.backs_off);
            if !cancelled && working.ends_ms > around.now_ms {
                return self.look_beside(app, around);
            }
            let (running, working) = (*running, working.clone());
            let here = self.here(app);
            (here.running, here.looked) = (None, None);
            if self.dies_here() {
                return;
            }
            if !cancelled
                && !working.backs_off
                && let Some(ends_ms) = self.end_step(app, &working, around)
            {
                let pause = Working { ends_ms, backs_off: true, ..working };
                self.here(app).running = Some((running, pause));
            }
        }
        let changes = self.changes(app);
        // What takes no time is followed at once by the next look, as in the agent.
        while self.up && self.agent.apps[app].running.is_none() {
            let looked = self.agent.apps[app].looked;
            if looked.is_some_and(|(seen, next_ms)| seen == changes && around.now_ms < next_ms) {
                return;
            }
            let (effects, next_ms) = self
                .see(app, |app, sight| (app.look(sight), sight.now.ms + App::look_in_ms(sight)));
            let acts = effects.iter().any(|effect| matches!(effect, Effect::Act { .. }));
            self.here(app).looked = (!acts).then_some((changes, next_ms));
            for effect in effects {
                if effect == Effect::Retire {
                    return self.retire(app);
                }
                self.perform(app, effect, around);
                if !self.up {
                    return;
                }
            }
            if !acts {
                return;
            }
        }
    }

    fn changes(&self, app: &AppId) -> Changes {
        let up = self.services.get(app).is_some_and(|service| service.up);
        (self.agent.changes, self.kill.stopping().is_some(), up)
    }

    /// Looks at the health of what runs next to a running step, as the agent does.
    fn look_beside(&mut self, app: &AppId, around: &Around<'_>) {
        let (here, changes) = (&self.agent.apps[app], self.changes(app));
        let due =
            here.looked.is_none_or(|(seen, next_ms)| seen.2 != changes.2 || next_ms <= self.now_ms);
        if here.watched.is_none() || !due {
            return;
        }
        self.here(app).looked = Some((changes, self.now_ms + LOOK_MS_MAX));
        let effects = self.see(app, |app, sight| {
            app.look_beside(sight.now.ms, sight.health, sight.room_for_health)
        });
        for effect in effects {
            self.perform(app, effect, around);
        }
    }

    pub(super) fn here(&mut self, app: &AppId) -> &mut AppAgent {
        self.agent.apps.get_mut(app).expect("every app on the disk was booted")
    }

    fn service(&mut self, app: &AppId) -> &mut Service {
        self.services.entry(app.clone()).or_default()
    }

    /// Changes the record; durable before it returns.
    pub(super) fn change(
        &mut self,
        app: &AppId,
        change: impl FnOnce(&mut AppRecord, BootTime<'_>),
    ) {
        let boot = self.boots.to_string();
        let now = BootTime { boot: &boot, ms: self.now_ms };
        let here = self.here(app);
        change(&mut here.record, now);
        if let Some(confirm) = &mut here.record.confirm {
            confirm.clock = confirm.clock.carried(now);
        }
        let record = here.record.clone();
        self.disk.apps.insert(app.clone(), record);
    }

    /// The same for what the host is about to do.
    fn intend(&mut self, app: &AppId, change: impl FnOnce(&mut AppRecord, BootTime<'_>)) {
        let before = self.disk.apps.get(app).cloned();
        self.change(app, change);
        if self.is_off(Mutation::IntentBeforeAction)
            && let Some(before) = before
        {
            self.disk.apps.insert(app.clone(), before);
        }
    }

    fn perform(&mut self, app: &AppId, effect: Effect, around: &Around<'_>) {
        match effect {
            Effect::Report { fence, attempt, outcome } => {
                self.agent.outbox.report(app, fence, attempt, outcome);
            }
            Effect::WriteDown => self.change(app, |_, _| {}),
            Effect::Act { action, running } => self.act(app, action, running, around),
            Effect::Undrain { .. } => {
                let previous = self.here(app).record.undrain_to().cloned();
                let service = self.service(app);
                if service.up && service.release == previous {
                    service.traffic = true;
                    self.change(app, |record, _| record.undrained());
                }
            }
            Effect::Doing(doing) => self.here(app).doing = doing,
            Effect::TakeTraffic => {
                let orders = self.agent.received.as_ref().and_then(|received| received.of(app));
                let owes = orders.is_some_and(|orders| orders.owes);
                let takes = self.here(app).record.takes_traffic().is_ok();
                let change = self.here(app).record.local.activation.as_ref();
                let busy = change.is_some_and(|change| {
                    !matches!(change.progress, Progress::Complete | Progress::GivenBack)
                });
                assert!(!takes || !owes || busy, "{} ms: {app} on {} {OWES}", self.now_ms, self.id);
                self.service(app).traffic = takes;
            }
            Effect::Unfit(reason) => self.service(app).unfit = reason.is_some(),
            Effect::EnsureRunning => {}
            Effect::Watch { checks, .. } => self.here(app).watched = Some(checks),
            Effect::Unwatch => self.here(app).watched = None,
            Effect::Try { checks } => self.here(app).tried = Some(checks),
            Effect::EndTrial => self.here(app).tried = None,
            Effect::Collect(keep) => self.collect(app, &keep),
            Effect::Retire => self.retire(app),
        }
    }

    fn act(&mut self, app: &AppId, action: StepAction, running: Running, around: &Around<'_>) {
        match action {
            StepAction::Accept { order, step } => {
                let highest = self.here(app).record.local.highest;
                let (id, fence, now_ms) = (&self.id, order.fence, self.now_ms);
                assert!(fence > highest, "{now_ms} ms: {fence:?} of {app} on {id} {TWICE}");
                self.begun.insert(app.clone(), (fence, now_ms));
                self.note_accepted(app, &order);
                let before = self.here(app).record.local.activation.as_ref();
                if let Some(before) = before.map(|before| before.order.clone()) {
                    self.earlier.insert(app.clone(), before);
                }
                let now_ms = self.now_ms;
                self.here(app).reached.begin(step, now_ms);
                self.intend(app, |record, now| record.accept(order, step, |_| true, now));
                self.run(app, step, 1, running, around);
            }
            StepAction::Run { step, attempt } => {
                if self.dies_here() {
                    return;
                }
                self.begin(app, step, attempt);
                self.run(app, step, attempt, running, around);
            }
            StepAction::Undo { attempt, .. } => {
                self.begin(app, Step::Undo, attempt);
                self.run(app, Step::Undo, attempt, running, around);
            }
            StepAction::GiveBack { order } => {
                self.change(app, |record, _| record.give_back(order, |_| true));
            }
            StepAction::Complete => {
                if self.dies_here() {
                    return;
                }
                self.change(app, |record, _| record.complete());
                let runs = self.here(app).record.local.current.is_some();
                self.service(app).traffic = runs;
            }
            StepAction::GiveUp { step, attempt } => {
                let failure = self.here(app).record.given_up(attempt);
                self.fail(app, step, attempt, failure);
            }
            StepAction::Settled | StepAction::Wait(_) => {}
        }
    }

    fn begin(&mut self, app: &AppId, step: Step, attempt: u32) {
        let now_ms = self.now_ms;
        let activation = self.here(app).record.local.activation.as_ref();
        if let Some(fence) = activation.map(|it| it.order.fence)
            && (step, attempt) == (Step::Drain, 1)
        {
            self.begun.insert(app.clone(), (fence, now_ms));
        }
        self.here(app).reached.begin(step, now_ms);
        self.intend(app, |record, now| record.begin(step, attempt, now));
    }

    fn run(
        &mut self,
        app: &AppId,
        step: Step,
        attempt: u32,
        running: Running,
        around: &Around<'_>,
    ) {
        let (ends_ms, fault) = self.takes(app, step, around);
        let working = Working { step, attempt, ends_ms, fault, backs_off: false };
        self.here(app).running = Some((running, working));
    }

    /// A step ran: durable at once only where the group hears of it.
    pub(super) fn done(&mut self, app: &AppId, step: Step, attempt: u32) {
        if reported_when_done(step) {
            self.change(app, |record, _| record.done(step, attempt));
        } else {
            self.here(app).record.done(step, attempt);
        }
    }

    pub(super) fn fail(&mut self, app: &AppId, step: Step, attempt: u32, failure: Failure) {
        if step >= Step::Drain {
            self.service(app).traffic = false;
        }
        self.change(app, |record, _| record.fail(step, attempt, failure));
    }

    fn note_accepted(&mut self, app: &AppId, order: &ActivationOrder) {
        let fence = order.fence;
        let news = self.accepted.insert((app.clone(), fence));
        assert!(news, "{} ms: {fence:?} of {app} on {} {TWICE}", self.now_ms, self.id);
        let serves = |service: &Service| service.release.is_none() || service.serves();
        let owes = self.agent.received.as_ref().and_then(|received| received.of(app));
        let owes = owes.is_some_and(|orders| orders.owes);
        // Going back to nothing takes nobody's place: nothing serves afterwards either.
        let whole = !owes
            && (order.release.is_some()
                || self.services.values().filter(|s| s.release.is_some()).count() > 1)
            && self.broken_ms.is_none_or(|at| self.now_ms - at > RECOVERED_MS)
            && self.services.values().all(serves)
            && self.services.values().any(Service::serves);
        if whole {
            self.took_away.insert(app.clone());
        } else if !self.being_changed(app) {
            self.took_away.remove(app);
        }
    }

    /// An app says which artifacts it wants kept.
    pub(super) fn keep(&mut self, app: &AppId, keep: &[Digest]) {
        let keep = if self.is_off(Mutation::CollectsLastGood) { &[] } else { keep };
        self.agent.kept.insert(app.clone(), keep.to_vec());
    }

    /// Nothing of the app is left on this server.
    fn retire(&mut self, app: &AppId) {
        self.disk.apps.remove(app);
        self.agent.apps.remove(app);
        self.agent.kept.remove(app);
        self.services.remove(app);
    }

    /// Removes artifacts that no app wants kept, once every app has said what it wants.
    fn collect(&mut self, app: &AppId, keep: &[Digest]) {
        self.keep(app, keep);
        if !self.disk.apps.keys().all(|app| self.agent.kept.contains_key(app)) {
            return;
        }
        let local = self.disk.apps.values().flat_map(|record| {
            let activation = record.local.activation.iter();
            let needed = activation.flat_map(|a| [&a.previous, &a.order.release, &a.order.undo_to]);
            needed.flatten().chain(&record.local.current)
        });
        let mut wanted: std::collections::BTreeSet<Digest> =
            local.map(|release| release.artifact.clone()).collect();
        wanted.extend(self.agent.kept.values().flatten().cloned());
        let removed = self.disk.held.extract_if(.., |artifact| !wanted.contains(artifact));
        self.collected.extend(removed);
    }
}
