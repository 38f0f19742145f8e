//! The runner: asks for orders, keeps every app going, reports.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use cohort_artifact::TrustedRepository;
use cohort_core::ids::{AppId, BootEpoch, Incarnation, ServerId};
use cohort_core::orders::Orders;
use cohort_distribute::Downloads;
use cohort_host::{AppHost, AppHostConfig, Contact, Controls, RunAs, boot_time_ms};
use cohort_registry::typed;
use cohort_wire::agent::{
    CONTROL_VERSION, CommandAnswer, Doing, JOIN_GROUP, JoinGroupRequest, ORDERS, OrdersAnswer,
    OrdersRequest, WAIT, WAIT_MS_MAX,
};
use cohort_wire::http::{Call, CallError};
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

/// How long an answer with orders may take: a read round, twice.
const ORDERS_DEADLINE: Duration = Duration::from_secs(3);
/// Pause after nobody answered.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// Orders, and how long they are good.
#[derive(Debug, Clone)]
pub(crate) struct Received {
    pub orders: Orders,
    /// When they were asked for, by the boot-time clock.
    pub asked_boot_ms: u64,
    pub valid_ms: u64,
}

impl Received {
    pub(crate) fn fresh(&self) -> bool {
        boot_time_ms().saturating_sub(self.asked_boot_ms) < self.valid_ms
    }
}

/// What every server is doing, for people.
#[derive(Debug, Default)]
pub(crate) struct DoingBoard(Mutex<BTreeMap<AppId, Doing>>);

impl DoingBoard {
    pub(crate) fn set(&self, app: &AppId, doing: Option<Doing>) {
        let mut board = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match doing {
            Some(doing) => board.insert(app.clone(), doing),
            None => board.remove(app),
        };
    }

    pub(crate) fn all(&self) -> BTreeMap<AppId, Doing> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// What the runner needs.
pub(crate) struct Runner {
    /// Where apps are worked on, see [`crate::app_thread::AppThread`].
    pub apps: Handle,
    pub shared: Arc<Shared>,
    pub boot_epoch: BootEpoch,
    pub controls: Controls,
    /// As whom services run; the agent's own user when absent.
    pub run_as: Option<RunAs>,
    pub downloads: Arc<Downloads>,
    pub repository: Option<Arc<TrustedRepository>>,
    pub readiness: Arc<Readiness>,
    pub orders: watch::Sender<Option<Arc<Received>>>,
    pub ended: mpsc::Sender<AgentError>,
    pub stop: CancellationToken,
}

impl Runner {
    /// Brings up what ran here, then obeys orders until it is told to stop.
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
        let mut pause = PAUSE_MIN;
        let mut turn = 0_usize;
        let mut preferred: Option<ServerId> = None;
        let mut introduced = false;
        let mut life = self.known_life();
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
        loop {
            if self.stop.is_cancelled() {
                return Ok(());
            }
            let candidates = self.candidates(preferred.as_ref()).await;
            let Some((server, address)) = candidates.get(turn % candidates.len().max(1)) else {
                self.rest(&mut pause).await;
                continue;
            };
            let asked_boot_ms = boot_time_ms();
            let request = self.request(&board, 0);
            let call = Call::post(ORDERS, &request).deadline(ORDERS_DEADLINE).idempotent();
            let target = self.shared.target(server, address);
            let answer = tokio::select! {
                () = self.stop.cancelled() => return Ok(()),
                answer = self.shared.client.call_json::<OrdersAnswer>(&target, call) => answer,
            };
            let answer = match answer {
                Ok(answer) => answer,
                Err(error) => {
                    tracing::debug!(%error, %server, "no orders");
                    self.pass_kill(server, address).await;
                    preferred = None;
                    turn = turn.wrapping_add(1);
                    if turn.is_multiple_of(candidates.len()) {
                        // Perhaps they are elsewhere by now.
                        self.ask_registry().await;
                        self.rest(&mut pause).await;
                    }
                    continue;
                }
            };
            pause = PAUSE_MIN;
            preferred = Some(server.clone());
            turn = 0;
            self.take_kill(answer.kill).await;
            let Some(orders) = answer.orders else {
                if let Err(error) = self.join_group(server, address).await {
                    tracing::warn!(%error, "the group did not take this server in yet");
                    self.rest(&mut pause).await;
                }
                continue;
            };
            if orders.incarnation < life {
                tracing::warn!(%server, incarnation = %orders.incarnation, "orders of a life that is over");
                preferred = None;
                turn = turn.wrapping_add(1);
                self.ask_registry().await;
                self.rest(&mut pause).await;
                continue;
            }
            life = orders.incarnation;
            self.shared.learn_members(&orders.members);
            self.shared.learn_leader(answer.leader.as_ref(), &orders.members);
            if !introduced {
                // The group hears of a new address or rack; the same ones change nothing.
                introduced = self.join_group(server, address).await.is_ok();
            }
            for app in &orders.apps {
                if !apps.contains_key(&app.app) {
                    let contact = self.start_app(&app.app, &board, &reporter).await?;
                    apps.insert(app.app.clone(), contact);
                }
            }
            for contact in apps.values() {
                contact.reached(asked_boot_ms);
            }
            let hash = answer.hash;
            let received =
                Arc::new(Received { orders, asked_boot_ms, valid_ms: answer.orders_valid_ms });
            self.orders.send_replace(Some(received));
            // Held until something changes for this server, here or there.
            let request = self.request(&board, hash);
            let call = Call::post(WAIT, &request)
                .deadline(Duration::from_millis(WAIT_MS_MAX) + ORDERS_DEADLINE)
                .idempotent();
            tokio::select! {
                () = self.stop.cancelled() => return Ok(()),
                waited = self.shared.client.call_json::<OrdersAnswer>(&target, call) => {
                    if let Ok(waited) = waited {
                        self.take_kill(waited.kill).await;
                    }
                }
            }
        }
    }

    /// The newest life of the group that this server has heard of, from what is on its disk.
    fn known_life(&self) -> Incarnation {
        self.shared.handle().map_or(Incarnation(0), |handle| handle.incarnation)
    }

    async fn rest(&self, pause: &mut Duration) {
        tokio::select! {
            () = self.stop.cancelled() => {}
            () = tokio::time::sleep(*pause) => {}
        }
        *pause = (*pause * 2).min(PAUSE_MAX);
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

    /// Whom to ask: the one that answered last, this server's own member, then the others.
    async fn candidates(&self, preferred: Option<&ServerId>) -> Vec<(ServerId, String)> {
        if self.shared.members().is_empty() {
            self.ask_registry().await;
        }
        let members = self.shared.members();
        let own = self.shared.server();
        let mut candidates: Vec<(ServerId, String)> =
            members.into_iter().map(|member| (member.server, member.address)).collect();
        if self.shared.handle().is_some() && !candidates.iter().any(|(server, _)| server == own) {
            candidates.push((own.clone(), advertised(&self.shared.config)));
        }
        // Everybody begins elsewhere, so that no member answers all.
        let spread = own.as_str().bytes().fold(0_usize, |sum, byte| sum * 31 + usize::from(byte));
        if !candidates.is_empty() {
            let start = spread % candidates.len();
            candidates.rotate_left(start);
        }
        candidates.sort_by_key(|(server, _)| (Some(server) != preferred, server != own));
        candidates
    }

    /// Learns from the registry where the group's members are.
    async fn ask_registry(&self) {
        let (registry, group) = (&*self.shared.registry, &self.shared.group);
        let asked = typed::read_members(registry, group);
        if let Ok(Ok(Some(record))) = tokio::time::timeout(ORDERS_DEADLINE, asked).await {
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
            tracing::warn!(%error, "a kill register was not taken");
        }
    }

    /// A minority has no orders to give, but a kill switch still goes from server to server.
    async fn pass_kill(&self, server: &ServerId, address: &str) {
        let target = self.shared.target(server, address);
        let call = Call::get(cohort_wire::agent::KILL).deadline(Duration::from_secs(1));
        if let Ok(registers) = self.shared.client.call_json(&target, call).await {
            self.take_kill(registers).await;
        }
    }

    async fn join_group(&self, server: &ServerId, address: &str) -> Result<(), CallError> {
        let config = &self.shared.config;
        let request = JoinGroupRequest {
            version: CONTROL_VERSION,
            group: self.shared.group.clone(),
            address: advertised(config),
            rack: config.rack.clone(),
        };
        let call = Call::post(JOIN_GROUP, &request).deadline(Duration::from_secs(6));
        let target = self.shared.target(server, address);
        self.shared.client.call_json::<CommandAnswer>(&target, call).await.map(drop)
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
            limits: cohort_host::UnpackLimits::default(),
        };
        // It reads and sweeps folders: a disk that is slow holds up nothing else.
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
