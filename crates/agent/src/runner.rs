//! The runner: asks for orders, keeps every app going, reports.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use cohort_artifact::TrustedRepository;
use cohort_base::chain;
use cohort_core::ids::{AppId, BootEpoch, Incarnation};
use cohort_distribute::Downloads;
use cohort_host::{AppHost, AppHostConfig, Contact, Controls, RunAs, boot_time_ms};
use cohort_registry::typed;
use cohort_server::asking::{
    ANSWER_MS_MAX, Asking, Effect, Input, Members, Question, Received, WAIT_MS_MAX, Whom,
};
use cohort_wire::agent::{
    CONTROL_VERSION, CommandAnswer, Doing, JOIN_GROUP, JoinGroupRequest, ORDERS, OrdersAnswer,
    OrdersRequest, WAIT,
};
use cohort_wire::http::{Call, CallError};
use parking_lot::Mutex;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::app::{AppTask, Changes};
use crate::error::AgentError;
use crate::fetching::Fetching;
use crate::join::advertised;
use crate::probe::Readiness;
use crate::reporter::Reporter;
use crate::shared::Shared;
use crate::start::{spawn_on_or_end, spawn_or_end};

/// What this server is doing, by app, for people.
#[derive(Debug, Default)]
pub(crate) struct DoingBoard(Mutex<BTreeMap<AppId, Doing>>);

impl DoingBoard {
    pub(crate) fn set(&self, app: &AppId, doing: Option<Doing>) {
        let mut board = self.0.lock();
        match doing {
            Some(doing) => board.insert(app.clone(), doing),
            None => board.remove(app),
        };
    }

    pub(crate) fn all(&self) -> BTreeMap<AppId, Doing> {
        self.0.lock().clone()
    }
}

/// The part of an agent that every server has.
pub(crate) struct Runner {
    /// The runtime that steps of apps run on, see [`crate::app_thread::AppThread`].
    pub apps: Handle,
    pub shared: Arc<Shared>,
    pub boot_epoch: BootEpoch,
    pub controls: Controls,
    /// The user that services run as; the agent's own if absent.
    pub run_as: Option<RunAs>,
    pub downloads: Arc<Downloads>,
    pub repository: Option<Arc<TrustedRepository>>,
    pub readiness: Arc<Readiness>,
    pub orders: watch::Sender<Option<Arc<Received>>>,
    pub ended: mpsc::Sender<AgentError>,
    pub stop: CancellationToken,
}

impl Runner {
    /// Brings up what ran here, then obeys orders until stopped.
    pub(crate) async fn run(self) -> Result<(), AgentError> {
        let board = Arc::new(DoingBoard::default());
        let reporter = Reporter::spawn(
            Arc::clone(&self.shared),
            self.boot_epoch,
            self.orders.subscribe(),
            self.stop.clone(),
        );
        let mut apps: BTreeMap<AppId, Contact> = BTreeMap::new();
        for app in self.apps_on_disk()? {
            let contact = self.start_app(&app, &board, &reporter).await?;
            apps.insert(app, contact);
        }
        let fetching = Fetching {
            shared: Arc::clone(&self.shared),
            downloads: Arc::clone(&self.downloads),
            repository: self.repository.clone(),
            reporter: reporter.clone(),
        };
        let fetching = fetching.run(self.orders.subscribe(), self.stop.clone());
        let fetching = async move {
            fetching.await;
            Ok(())
        };
        spawn_or_end("fetching", fetching, &self.ended);
        let incarnation = self.shared.handle().map_or(Incarnation(0), |handle| handle.incarnation);
        let mut asking = Asking::new(self.shared.server().clone(), incarnation);
        let mut input = Input::Woken;
        loop {
            let known = self.shared.members();
            let own = self.shared.handle().map(|_| advertised(&self.shared.config));
            let members = Members { known: &known, own: own.as_deref() };
            let effects = asking.step(boot_time_ms(), members, input);
            input = Input::Woken;
            for effect in effects {
                if let Effect::Obey(received) = effect {
                    self.obey(*received, &mut apps, &board, &reporter).await?;
                    continue;
                }
                input = tokio::select! {
                    () = self.stop.cancelled() => return Ok(()),
                    input = self.perform(effect, &board) => input,
                };
            }
        }
    }

    /// Puts orders in force.
    async fn obey(
        &self,
        received: Received,
        apps: &mut BTreeMap<AppId, Contact>,
        board: &Arc<DoingBoard>,
        reporter: &Reporter,
    ) -> Result<(), AgentError> {
        let members = &received.orders.members;
        self.shared.learn_members(members);
        self.shared.learn_leader(received.leader.as_ref(), members);
        for orders in &received.orders.apps {
            if !apps.contains_key(&orders.app) {
                let contact = self.start_app(&orders.app, board, reporter).await?;
                apps.insert(orders.app.clone(), contact);
            }
        }
        for contact in apps.values() {
            contact.reached(received.asked_ms);
        }
        self.orders.send_replace(Some(Arc::new(received)));
        Ok(())
    }

    async fn perform(&self, effect: Effect, board: &DoingBoard) -> Input {
        match effect {
            Effect::Obey(_) => Input::Woken,
            Effect::PassKill(whom) => {
                self.pass_kill(&whom).await;
                Input::Woken
            }
            Effect::OldIncarnation { server, incarnation } => {
                tracing::warn!(%server, %incarnation, "ignoring orders from an old incarnation");
                Input::Woken
            }
            Effect::AskRegistry => {
                self.ask_registry().await;
                Input::RegistryAsked
            }
            Effect::Rest { until_ms } => {
                let left_ms = until_ms.saturating_sub(boot_time_ms());
                tokio::time::sleep(Duration::from_millis(left_ms)).await;
                Input::Woken
            }
            Effect::Ask(whom, Question::Orders) => self.ask(&whom, board).await,
            Effect::Ask(whom, Question::Change { known }) => {
                let deadline = Duration::from_millis(WAIT_MS_MAX + ANSWER_MS_MAX);
                if let Ok(answer) = self.question(&whom, WAIT, board, known, deadline).await {
                    self.take_kill(answer.kill).await;
                }
                Input::Changed
            }
            Effect::Ask(whom, Question::Join) => match self.join_group(&whom).await {
                Ok(CommandAnswer { rejection: None, .. }) => Input::Joined(true),
                Ok(CommandAnswer { rejection, .. }) => {
                    tracing::warn!(rejection, member = %whom.server, "refused by the group");
                    Input::Joined(false)
                }
                Err(error) => {
                    let error = chain(&error);
                    tracing::warn!(error, member = %whom.server, "not taken into the group yet");
                    Input::Joined(false)
                }
            },
        }
    }

    async fn ask(&self, whom: &Whom, board: &DoingBoard) -> Input {
        let deadline = Duration::from_millis(ANSWER_MS_MAX);
        match self.question(whom, ORDERS, board, 0, deadline).await {
            Ok(answer) => {
                self.take_kill(answer.kill).await;
                Input::Orders {
                    orders: answer.orders.map(Box::new),
                    valid_ms: answer.orders_valid_ms,
                    leader: answer.leader,
                    hash: answer.hash,
                }
            }
            Err(error) => {
                tracing::debug!(%error, member = %whom.server, "no orders");
                Input::NoAnswer
            }
        }
    }

    async fn question(
        &self,
        whom: &Whom,
        path: &str,
        board: &DoingBoard,
        known: u64,
        deadline: Duration,
    ) -> Result<OrdersAnswer, CallError> {
        let request = self.request(board, known);
        let call = Call::post(path, &request).deadline(deadline).idempotent();
        let target = self.shared.target(&whom.server, &whom.address);
        self.shared.client.call_json(&target, call).await
    }

    fn request(&self, board: &DoingBoard, known: u64) -> OrdersRequest {
        OrdersRequest {
            version: CONTROL_VERSION,
            group: self.shared.group.clone(),
            boot_epoch: self.boot_epoch,
            doing: board.all(),
            kill: self.shared.kill.signed(),
            known,
        }
    }

    /// Looks up in the registry where the group's members are.
    async fn ask_registry(&self) {
        let (registry, group) = (&*self.shared.registry, &self.shared.group);
        let asked = typed::read_members(registry, group);
        if let Ok(Ok(Some(record))) =
            tokio::time::timeout(Duration::from_millis(ANSWER_MS_MAX), asked).await
        {
            let known: Vec<cohort_core::orders::MemberAddress> = record
                .members
                .into_iter()
                .map(|member| cohort_core::orders::MemberAddress {
                    server: member.server,
                    address: member.address,
                    member: member.member,
                })
                .collect();
            self.shared.learn_members(&known);
        }
    }

    async fn take_kill(&self, registers: Vec<cohort_wire::kill::SignedKill>) {
        if let Err(error) = self.shared.kill.offer(registers).await {
            tracing::warn!(%error, "kill register not accepted");
        }
    }

    async fn pass_kill(&self, whom: &Whom) {
        let target = self.shared.target(&whom.server, &whom.address);
        let call = Call::get(cohort_wire::agent::KILL).deadline(Duration::from_secs(1));
        if let Ok(registers) = self.shared.client.call_json(&target, call).await {
            self.take_kill(registers).await;
        }
    }

    async fn join_group(&self, whom: &Whom) -> Result<CommandAnswer, CallError> {
        let config = &self.shared.config;
        let request = JoinGroupRequest {
            version: CONTROL_VERSION,
            group: self.shared.group.clone(),
            address: advertised(config),
            rack: config.rack.clone(),
        };
        let call = Call::post(JOIN_GROUP, &request).deadline(Duration::from_secs(6));
        let target = self.shared.target(&whom.server, &whom.address);
        self.shared.client.call_json(&target, call).await
    }

    fn apps_on_disk(&self) -> Result<Vec<AppId>, AgentError> {
        let folder = self.shared.config.data_dir.join("apps");
        let fail = |source| AgentError::File { path: folder.clone(), what: "read", source };
        let entries = match std::fs::read_dir(&folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(fail(error)),
        };
        let mut apps = Vec::new();
        for entry in entries {
            let name = entry.map_err(fail)?.file_name();
            if let Some(app) = name.to_str().and_then(|name| AppId::new(name).ok()) {
                apps.push(app);
            }
        }
        Ok(apps)
    }

    async fn start_app(
        &self,
        app: &AppId,
        board: &Arc<DoingBoard>,
        reporter: &Reporter,
    ) -> Result<Contact, AgentError> {
        let config = &self.shared.config;
        let host_config = AppHostConfig {
            state_dir: config.data_dir.clone(),
            install_dir: self.install_dir(app),
            server: config.server.clone(),
            group: self.shared.group.clone(),
            platform: config.platform.clone(),
            service_port: config.service_port,
            run_as: self.run_as,
            host_programs: Arc::new(config.exec_programs.clone()),
        };
        // Opening reads and sweeps folders: keep a slow disk off this thread.
        let (named, controls) = (app.clone(), self.controls.clone());
        let opened =
            tokio::task::spawn_blocking(move || AppHost::open(host_config, named, controls)).await;
        let host = opened.map_err(|_| AgentError::Panicked("start of an app"))??;
        let contact = host.contact();
        self.readiness.add(app, host.traffic());
        let task = AppTask {
            shared: Arc::clone(&self.shared),
            app: app.clone(),
            host,
            downloads: Arc::clone(&self.downloads),
            board: Arc::clone(board),
            reporter: reporter.clone(),
            readiness: Arc::clone(&self.readiness),
            stop: self.stop.clone(),
        };
        let changes = Changes {
            orders: self.orders.subscribe(),
            fetched: self.downloads.statuses(),
            killed: self.shared.kill.subscribe(),
            confirmed: reporter.confirmed(),
        };
        let running = async move { task.run(changes).await.map_err(AgentError::Host) };
        spawn_on_or_end(&self.apps, "app", running, &self.ended);
        Ok(contact)
    }

    fn install_dir(&self, app: &AppId) -> PathBuf {
        self.shared.config.install_dir.join(app.as_str())
    }
}
