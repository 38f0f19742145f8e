//! What steps do to a virtual server, and how long they take.

use cohort_core::ids::{AppId, ServerId};
use cohort_core::policy::CheckPhase;
use cohort_core::report::{Blame, Step};
use cohort_core::steps::{Failure, back_off_ms};

use super::{Around, Server, Service, Working};
use crate::fleet::behaviour::Fault;

/// How long the host lets a step hang, in milliseconds.
const STEP_LIMIT_MS: u64 = 20_000;

/// How long a step takes where nothing else says so, in milliseconds.
const STEP_MS: u64 = 100;

impl Server {
    /// When a step that begins now ends, and its fault.
    pub(super) fn takes(
        &mut self,
        app: &AppId,
        step: Step,
        around: &Around<'_>,
    ) -> (u64, Option<Fault>) {
        let here = &self.agent.apps[app];
        let activation = here.record.local.activation.as_ref();
        let order = &activation.expect("a step runs only within an activation").order;
        let asked = here.laters.get(&step).copied().unwrap_or(0);
        let hits = |fault: &&Fault| match fault {
            Fault::Fails(at) | Fault::Surroundings(at) | Fault::Hangs(at) => *at == step,
            Fault::Later(at, times) => *at == step && asked < *times,
            Fault::Takes(at, _) => *at == step,
            Fault::DiesAfter(_) | Fault::CutsNetwork => false,
        };
        let release = order.release.as_ref();
        let fault = release
            .and_then(|release| around.behaviours.faults(release, &self.id).find(hits).cloned());
        let usual_ms = match step {
            Step::Drain => order.drain_ms + STEP_MS,
            Step::Check => order.min_healthy_ms.max(STEP_MS),
            Step::WarmUp => order.warm_up_ms + STEP_MS,
            Step::Fetch
            | Step::Prepare
            | Step::HandOver
            | Step::Stop
            | Step::Switch
            | Step::Start
            | Step::Undo => STEP_MS,
        };
        let takes_ms = match (&fault, step) {
            (Some(Fault::Hangs(_)), _) => STEP_LIMIT_MS,
            (Some(Fault::Takes(_, ms)), _) => *ms,
            (Some(Fault::Fails(_)), Step::Check) => order.healthy_deadline_ms,
            _ => usual_ms,
        };
        (around.now_ms + takes_ms, fault)
    }

    /// A step ends. When it asked for later: until when the agent pauses before it tries again.
    pub(super) fn end_step(
        &mut self,
        app: &AppId,
        working: &Working,
        around: &Around<'_>,
    ) -> Option<u64> {
        let (step, attempt) = (working.step, working.attempt);
        if step == Step::Drain
            && let Some(service) = self.services.get_mut(app)
        {
            // Also where the hook fails: readiness goes first.
            service.traffic = false;
        }
        let failure = |blame, reason: &str| {
            let (reason, output) = (reason.to_owned(), String::new());
            Some(Failure { blame, reason, output })
        };
        let failed = match &working.fault {
            Some(Fault::Fails(_)) => failure(Blame::Release, "wrong answer"),
            Some(Fault::Surroundings(_)) => failure(Blame::Surroundings, "disk full"),
            Some(Fault::Hangs(_)) => failure(Blame::Release, "timed out"),
            Some(Fault::Later(..)) => {
                self.change(app, |record, _| record.later = Some(step.name().to_owned()));
                *self.here(app).laters.entry(step).or_default() += 1;
                return Some(around.now_ms + back_off_ms(attempt));
            }
            Some(Fault::Takes(..) | Fault::DiesAfter(_) | Fault::CutsNetwork) | None => None,
        };
        let failed = failed.or_else(|| match step {
            Step::Prepare if self.full => failure(Blame::Surroundings, "no space left"),
            Step::Check => {
                let activation = self.agent.apps[app].record.local.activation.as_ref();
                let mut checks = activation.map_or(Vec::new(), |known| known.order.checks.clone());
                checks.retain(|check| check.phase.contains(&CheckPhase::PreFlight));
                let health = self.services.entry(app.clone()).or_default().health(&checks);
                (!health.in_service).then(|| failure(Blame::Release, &health.reason)).flatten()
            }
            _ => None,
        });
        if let Some(failure) = failed {
            self.fail(app, step, attempt, failure);
            return None;
        }
        self.change_service(app, step, around);
        if self.dies_here() {
            return None;
        }
        if step == Step::Undo {
            self.change(app, |record, _| record.undone("the group was not reached".into()));
        } else {
            self.done(app, step, attempt);
        }
        None
    }

    fn change_service(&mut self, app: &AppId, step: Step, around: &Around<'_>) {
        let activation = self.agent.apps[app].record.local.activation.clone();
        let activation = activation.expect("a step runs only within an activation");
        let service = self.services.entry(app.clone()).or_default();
        match step {
            Step::Fetch | Step::Prepare | Step::HandOver | Step::Check => {}
            Step::Drain => service.traffic = false,
            Step::Stop => {
                service.up = false;
                service.traffic = false;
                service.dies_ms = None;
            }
            Step::Switch => service.release = activation.order.release,
            Step::Start => start_service(service, &self.id, around),
            Step::WarmUp => service.traffic = true,
            Step::Undo => {
                let still_serves = service.up && service.release == activation.previous;
                if !still_serves {
                    service.release.clone_from(&activation.previous);
                    start_service(service, &self.id, around);
                }
                service.traffic = activation.previous.is_some();
            }
        }
    }
}

fn start_service(service: &mut Service, id: &ServerId, around: &Around<'_>) {
    service.up = service.release.is_some();
    service.dies_ms = service.release.as_ref().and_then(|release| {
        around.behaviours.faults(release, id).find_map(|fault| match fault {
            Fault::DiesAfter(ms) => Some(around.now_ms + ms),
            Fault::Fails(_)
            | Fault::Surroundings(_)
            | Fault::Hangs(_)
            | Fault::Takes(..)
            | Fault::Later(..)
            | Fault::CutsNetwork => None,
        })
    });
}
