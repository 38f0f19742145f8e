//! The runner: asks for orders, keeps every app going, reports.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cohort_core::command::Rejection;
use cohort_core::ids::{AppId, Incarnation};
use cohort_host::{AppHost, AppHostConfig, Controls, OwnValues, Programs, boot_time_ms};
use cohort_server::asking::{
    ANSWER_MS_MAX, Asking, CHANGE_MS_MAX, Effect, Input, Members, Question, Received, Whom,
};
use cohort_server::membership::{Obedience, obedience};
use cohort_wire::agent::{
    CommandAnswer, JOIN_GROUP, JoinGroupRequest, KILL, ORDERS, OrdersAnswer, OrdersRequest,
    Submission, ToGroup, WAIT,
};
use cohort_wire::http::{Call, CallError};
use cohort_wire::kill::KillAnswer;
use tokio::runtime::Handle;

use crate::app::{AppTask, Changes};
use crate::error::AgentError;
use crate::fetching::Fetching;
use crate::join::advertised;
use crate::reporter::Reporter;
use crate::revoking::exchange_with;
use crate::service_user::ServiceUser;
use crate::shared::Shared;
use crate::whereabouts;

/// The part of an agent that every server has.
pub(crate) struct Runner {
    /// The runtime that steps of apps run on, see [`crate::app_thread::AppThread`].
    pub apps: Handle,
    pub shared: Arc<Shared>,
    pub controls: Controls,
    pub programs: Arc<Programs>,
    /// Whom services, hooks and `exec` checks of releases run as, if not as the agent.
    pub user: Option<ServiceUser>,
}

impl Runner {
    /// Brings up what ran here, then obeys orders until stopped.
    pub(crate) async fn run(self) -> Result<(), AgentError> {
        let reporter = Reporter::spawn(&self.shared);
        let mut apps = BTreeSet::new();
        for app in self.shared.apps_on_disk()? {
            self.start_app(&app, &reporter).await?;
            apps.insert(app);
        }
        let fetching = Fetching { shared: Arc::clone(&self.shared), reporter: reporter.clone() };
        self.shared.tasks.spawn("fetching", fetching.run());
        let incarnation = self.shared.handle().map_or(Incarnation(0), |handle| handle.incarnation);
        let mut asking = Asking::new(self.shared.server().clone(), incarnation);
        let mut input = Input::Woken;
        loop {
            let (known, voters) = {
                let book = self.shared.book.lock();
                (book.current().to_vec(), book.voters.clone())
            };
            let own = self.shared.handle().map(|_| advertised(&self.shared.config));
            let members = Members { known: &known, voters: &voters, own: own.as_deref() };
            let effects = asking.step(boot_time_ms(), members, input);
            input = Input::Woken;
            for effect in effects {
                match effect {
                    Effect::Obey(received) => {
                        self.obey(*received, &mut apps, &reporter).await?;
                    }
                    Effect::Displaced { host } => return Err(AgentError::Displaced { host }),
                    other => input = self.perform(other).await,
                }
            }
        }
    }

    /// Puts orders in force.
    async fn obey(
        &self,
        received: Received,
        apps: &mut BTreeSet<AppId>,
        reporter: &Reporter,
    ) -> Result<(), AgentError> {
        // One that has obeyed no orders yet has sent no report.
        let own = self.shared.boot_epoch;
        let start = (own, self.shared.orders.borrow().is_some());
        match obedience(&received, boot_time_ms(), self.shared.own_log(), start) {
            Obedience::Obey => {}
            Obedience::Ignore => return Ok(()),
            Obedience::Retired { incarnation, member } => {
                return Err(AgentError::Retired { incarnation, member });
            }
            Obedience::EarlierDisk { heard } => {
                return Err(AgentError::EarlierDisk { own, heard });
            }
        }
        let members = &received.orders.members;
        {
            let mut book = self.shared.book.lock();
            book.learn(members);
            book.voters.clone_from(&received.voters);
        }
        self.shared.learn_leader(received.leader.as_ref(), members);
        for app in std::mem::take(&mut *self.shared.retired.lock()) {
            apps.remove(&app);
        }
        for orders in &received.orders.apps {
            if apps.insert(orders.app.clone()) {
                self.start_app(&orders.app, reporter).await?;
            }
        }
        self.shared.orders.send_replace(Some(Arc::new(received)));
        Ok(())
    }

    async fn perform(&self, effect: Effect) -> Input {
        match effect {
            Effect::Obey(_) | Effect::Displaced { .. } => Input::Woken,
            Effect::OldIncarnation { server, incarnation } => {
                tracing::warn!(%server, %incarnation, "ignoring orders from an old incarnation");
                Input::Woken
            }
            Effect::AskRegistry { tell } => {
                whereabouts::find_members(&self.shared, tell).await;
                Input::RegistryAsked
            }
            Effect::Rest { until_ms } => {
                let left_ms = until_ms.saturating_sub(boot_time_ms());
                tokio::time::sleep(Duration::from_millis(left_ms)).await;
                Input::Woken
            }
            Effect::Ask(whom, Question::Orders) => self.ask(&whom).await,
            Effect::Ask(whom, Question::Change { known }) => {
                let deadline = Duration::from_millis(CHANGE_MS_MAX);
                tokio::select! {
                    biased;
                    answer = self.question(&whom, WAIT, known, deadline) => match answer {
                        Ok(answer) => {
                            self.shared.latch(answer.kill).await;
                            Input::Changed
                        }
                        Err(error) => self.missed(&error),
                    },
                    () = self.tell_steps(&whom) => Input::Changed,
                }
            }
            Effect::Ask(whom, Question::Kill) => {
                let call = Call::get(KILL).deadline(Duration::from_secs(1));
                let Whom { server, address, .. } = &whom;
                if let Ok(answer) = self.shared.call_member(server, address, call).await {
                    let KillAnswer { registers, .. } = answer;
                    self.shared.latch(registers).await;
                }
                Input::Changed
            }
            Effect::Ask(whom, Question::Join) => match self.join_group(&whom).await {
                Ok(CommandAnswer { rejection: None, .. }) => {
                    self.shared.complaints.not_taken.lock().ended("taken into the group");
                    Input::Joined(true)
                }
                Ok(CommandAnswer {
                    rejection: Some(Rejection::RunsElsewhere { host, .. }),
                    ..
                }) => {
                    self.shared.runs_elsewhere(&host);
                    Input::RunsElsewhere { host }
                }
                Ok(CommandAnswer { rejection, .. }) => {
                    tracing::warn!(?rejection, member = %whom.server, "refused by the group");
                    Input::Joined(false)
                }
                Err(error) => {
                    self.shared
                        .complaints
                        .not_taken
                        .lock()
                        .of("not taken into the group yet", &error);
                    Input::Joined(false)
                }
            },
        }
    }

    async fn ask(&self, whom: &Whom) -> Input {
        let deadline = Duration::from_millis(ANSWER_MS_MAX);
        match self.question(whom, ORDERS, 0, deadline).await {
            Ok(answer) => {
                self.shared.latch(answer.kill).await;
                let Whom { server, address, .. } = whom;
                exchange_with(&self.shared, server, address, answer.revocations).await;
                self.shared
                    .complaints
                    .no_orders
                    .lock()
                    .ended("a member of the group answers again");
                self.shared.clock_is(answer.clock_ahead_ms);
                self.shared.has_orders(answer.orders.is_some());
                Input::Orders {
                    orders: answer.orders.map(Box::new),
                    elsewhere: answer.elsewhere,
                    valid_ms: answer.orders_valid_ms,
                    leader: answer.leader,
                    voters: answer.voters,
                }
            }
            Err(error) => self.missed(&error),
        }
    }

    fn missed(&self, error: &CallError) -> Input {
        // Members restart, and elect leaders: two rounds without an answer are news.
        let patience = 2 * self.shared.members().len();
        let what = "no orders from the group";
        self.shared.complaints.no_orders.lock().after(patience, what, error);
        Input::NoAnswer
    }

    async fn question(
        &self,
        whom: &Whom,
        path: &str,
        known: u64,
        deadline: Duration,
    ) -> Result<OrdersAnswer, CallError> {
        let request = OrdersRequest {
            life: self.shared.life,
            doing: self.shared.doing.lock().clone(),
            known,
            machine: self.shared.machine(),
        };
        let message = ToGroup::new(&self.shared.group, request);
        let message = ToGroup { kill: self.shared.kill.signed(), ..message };
        let call = Call::post(path, &message).deadline(deadline).idempotent();
        self.shared.call_member(&whom.server, &whom.address, call).await
    }

    /// Tells a member of each step that starts while a question to it is held: a server that dies
    /// in a step was last seen in that step, not in the one of its last question. Never ends.
    async fn tell_steps(&self, whom: &Whom) {
        loop {
            self.shared.step_changed.notified().await;
            // Knowing no orders, it gets its answer immediately.
            let _ = self.question(whom, WAIT, 0, Duration::from_millis(ANSWER_MS_MAX)).await;
        }
    }

    async fn join_group(&self, whom: &Whom) -> Result<CommandAnswer, CallError> {
        let config = &self.shared.config;
        let (life, rack) = (self.shared.life, config.rack.clone());
        let request = JoinGroupRequest { life, address: advertised(config), rack };
        let signed = self.shared.sign(&whom.address, Submission::Join(request))?;
        let message = ToGroup::new(&self.shared.group, signed);
        let call = Call::post(JOIN_GROUP, &message).deadline(Duration::from_secs(6));
        self.shared.call_member(&whom.server, &whom.address, call).await
    }

    async fn start_app(&self, app: &AppId, reporter: &Reporter) -> Result<(), AgentError> {
        let task = self.open_app(app, reporter).await?;
        let running = async move { task.run().await.map_err(AgentError::Host) };
        self.shared.tasks.spawn_on(&self.apps, "app", running);
        Ok(())
    }

    pub(crate) async fn open_app(
        &self,
        app: &AppId,
        reporter: &Reporter,
    ) -> Result<AppTask, AgentError> {
        let config = &self.shared.config;
        let (port, ports) = (config.service_port, config.ports.clone());
        let own_values = OwnValues::of(app, port, ports, config.labels.clone());
        let host_config = AppHostConfig {
            state_dir: config.data_dir.clone(),
            install_dir: config.install_dir.join(app.as_str()),
            server: config.server.clone(),
            group: self.shared.group.clone(),
            platform: config.platform.clone(),
            service_address: config.service_address,
            own_values: Arc::new(own_values),
            run_as: self.user.as_ref().map(|user| user.run_as),
            home: self.user.as_ref().map(|user| user.home.clone()),
            env_file: config.env_dir.join(format!("{app}.env")),
            files_dir: config.files_dir.join(app.as_str()),
            programs: Arc::clone(&self.programs),
            systemd_units: Arc::new(config.systemd_units.clone()),
            host_programs: Arc::new(config.exec_programs.clone()),
        };
        // Opening reads and sweeps folders: keep a slow disk off this thread.
        let (named, controls) = (app.clone(), self.controls.clone());
        let opened =
            tokio::task::spawn_blocking(move || AppHost::open(host_config, named, controls)).await;
        let host = opened.map_err(|_| AgentError::Panicked("start of an app"))??;
        self.shared.readiness.add(app, host.traffic());
        Ok(AppTask {
            shared: Arc::clone(&self.shared),
            app: app.clone(),
            host,
            reporter: reporter.clone(),
            changes: Changes::new(app.clone(), &self.shared, reporter),
        })
    }
}

#[cfg(test)]
#[path = "runner_test.rs"]
mod runner_test;
