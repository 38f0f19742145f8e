//! The steps of an activation, as a simulated server takes them.

use cohort_core::ids::{AppId, ServerId};
use cohort_core::report::{Blame, Step};
use cohort_core::steps::Progress;

use super::{Around, Server, Service, Working};
use crate::fleet::behaviour::Fault;

/// How long the host lets a step hang, in milliseconds.
const STEP_LIMIT_MS: u64 = 20_000;

/// How long a step takes where nothing else says so, in milliseconds.
const STEP_MS: u64 = 100;

impl Server {
    pub(super) fn begin(&mut self, app: &AppId, step: Step, attempt: u32, around: &Around<'_>) {
        let order = self.order(app).clone();
        let fault = order.release.as_ref().and_then(|release| {
            around
                .behaviours
                .faults(release, &self.id)
                .find(|fault| match fault {
                    Fault::Fails(at) | Fault::Surroundings(at) | Fault::Hangs(at) => *at == step,
                    Fault::Later(at, times) => {
                        let asked =
                            self.memory.laters.get(&(app.clone(), step)).copied().unwrap_or(0);
                        *at == step && asked < *times
                    }
                    Fault::DiesAfter(_) | Fault::CutsNetwork => false,
                })
                .cloned()
        });
        let usual = match step {
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
        let takes = match (&fault, step) {
            (Some(Fault::Hangs(_)), _) => STEP_LIMIT_MS,
            (Some(Fault::Fails(_)), Step::Check) => order.healthy_deadline_ms,
            _ => usual,
        };
        let ends_ms = around.now_ms + takes;
        self.memory.working.insert(app.clone(), Working { step, attempt, ends_ms, fault });
    }

    pub(super) fn end_step(&mut self, app: &AppId, working: &Working, around: &Around<'_>) {
        let (step, attempt) = (working.step, working.attempt);
        if step == Step::Drain
            && let Some(service) = self.services.get_mut(app)
        {
            // Also where the hook fails: readiness goes first.
            service.traffic = false;
        }
        match &working.fault {
            Some(Fault::Fails(_)) => {
                return self.write_failed(app, step, attempt, Blame::Release, "wrong answer");
            }
            Some(Fault::Surroundings(_)) => {
                return self.write_failed(app, step, attempt, Blame::Surroundings, "disk full");
            }
            Some(Fault::Hangs(_)) => {
                return self.write_failed(app, step, attempt, Blame::Release, "timed out");
            }
            Some(Fault::Later(..)) => {
                // Stays begun: the next attempt runs it again.
                *self.memory.laters.entry((app.clone(), step)).or_default() += 1;
                return;
            }
            Some(Fault::DiesAfter(_) | Fault::CutsNetwork) | None => {}
        }
        let order = self.order(app).clone();
        let previous = self.disk.apps[app].activation.as_ref().and_then(|a| a.previous.clone());
        let service = self.services.entry(app.clone()).or_default();
        match step {
            Step::Fetch | Step::Prepare | Step::HandOver => {}
            Step::Drain => service.traffic = false,
            Step::Stop => {
                service.up = false;
                service.dies_ms = None;
            }
            Step::Switch => {
                service.release.clone_from(&order.release);
                self.disk.apps.get_mut(app).expect("known").current.clone_from(&order.release);
            }
            Step::Start => start_service(service, &self.id, around),
            Step::Check => {
                if !service.up {
                    let reason = "the service is not there";
                    return self.write_failed(app, step, attempt, Blame::Release, reason);
                }
            }
            Step::WarmUp => service.traffic = true,
            Step::Undo => {
                service.release.clone_from(&previous);
                service.traffic = previous.is_some();
                start_service(service, &self.id, around);
                self.disk.apps.get_mut(app).expect("known").current = previous;
            }
        }
        if self.dies_here() {
            return;
        }
        if step == Step::Undo {
            let reason = "the group was not reached".into();
            self.write(app, Progress::Undone { reason });
        } else {
            self.write(app, Progress::Done { step, attempt });
        }
    }
}

pub(super) fn start_service(service: &mut Service, id: &ServerId, around: &Around<'_>) {
    service.up = service.release.is_some();
    service.dies_ms = service.release.as_ref().and_then(|release| {
        around.behaviours.faults(release, id).find_map(|fault| match fault {
            Fault::DiesAfter(ms) => Some(around.now_ms + ms),
            Fault::Fails(_)
            | Fault::Surroundings(_)
            | Fault::Hangs(_)
            | Fault::Later(..)
            | Fault::CutsNetwork => None,
        })
    });
}
