//! The guard's side of its socket.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cohort_base::chain;
use cohort_base::retry::NEAR;
use cohort_store::DurableFileError;
use futures_util::StreamExt as _;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Semaphore};

use super::events::EventLog;
use super::ground::Ground;
use super::home::{CannotSpawn, Home, Shared};
use super::leftover;
use super::log::ServiceLog;
use super::protocol::{Answer, Ask, Request, Response, VERSION, broken, lines, send};
use super::state::{Kept, Record};
use super::supervise::Supervised;
use crate::cgroup::Cgroups;
use crate::launch::Launch;
use crate::service::{RunService, ServiceSpec, ServiceStatus};

/// Most connections at a time. The agent uses one, an operator another.
const CONNECTIONS_MAX: usize = 16;

/// An idle connection is closed after this.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Most services of one guard: the apps on one server.
const SERVICES_MAX: usize = 64;

/// How long the sockets of a stopped service stay open: a rollout stops it, and starts another
/// release of it, in seconds.
const SOCKETS_KEPT: Duration = Duration::from_secs(60);

/// One service's slot. Its lock is held while the service is started or stopped: requests about the
/// same service are served in turn; those about others do not wait.
#[derive(Debug)]
struct Place {
    home: Home,
    service: Mutex<Option<Supervised>>,
    /// How often it was stopped.
    stops: AtomicU64,
}

impl Place {
    /// Closes the sockets of a service that was stopped, unless it has started again by then.
    fn close_sockets_later(self: &Arc<Self>) {
        let place = Arc::clone(self);
        let stop = place.stops.fetch_add(1, Ordering::Relaxed) + 1;
        tokio::spawn(async move {
            tokio::time::sleep(SOCKETS_KEPT).await;
            if place.stops.load(Ordering::Relaxed) == stop {
                place.close_sockets(None);
            }
        });
    }

    /// Closes sockets, at these ports or all, unless the service runs, or is about to.
    fn close_sockets(&self, ports: Option<&[u16]>) {
        if self.service.try_lock().is_ok_and(|service| service.is_none()) {
            self.home.close_sockets(ports);
        }
    }
}

#[derive(Debug)]
pub(crate) struct Server {
    folder: PathBuf,
    shared: Arc<Shared>,
    places: parking_lot::Mutex<BTreeMap<String, Arc<Place>>>,
}

impl Server {
    /// Reads which services should run, and runs them.
    pub(crate) async fn open(
        folder: &Path,
        ground: Arc<Ground>,
        (confine, cgroups): (Launch, Cgroups),
    ) -> Result<Arc<Self>, DurableFileError> {
        let record = Record::open(folder, ground)?;
        let server = Arc::new(Server {
            folder: folder.to_owned(),
            shared: Arc::new(Shared { record, events: EventLog::new(folder), confine, cgroups }),
            places: parking_lot::Mutex::default(),
        });
        for kept in server.shared.record.services() {
            match server.place(&kept.spec.name) {
                Ok(place) => {
                    let supervised = Supervised::take_over(&place.home, kept).await;
                    *place.service.lock().await = Some(supervised);
                }
                Err(reason) => {
                    let service = kept.spec.name;
                    tracing::error!(service, reason, "cannot take over a service");
                }
            }
        }
        Ok(server)
    }

    /// Serves requests until the process ends.
    pub(crate) async fn serve(self: Arc<Self>, listener: UnixListener) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        let mut pauses = NEAR.pauses();
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    pauses.reset();
                    // One too many: closed immediately instead of queued without bound.
                    let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else { continue };
                    let server = Arc::clone(&self);
                    tokio::spawn(async move {
                        if let Err(error) = server.converse(stream).await {
                            tracing::debug!(%error, "connection to the guard broke");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Out of file descriptors, for example. Services keep running.
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(pauses.next_pause()).await;
                }
            }
        }
    }

    async fn converse(&self, stream: UnixStream) -> std::io::Result<()> {
        let mut lines = lines(stream);
        loop {
            let line = tokio::time::timeout(IDLE_MAX, lines.next());
            let Ok(Some(line)) = line.await else { return Ok(()) };
            let line = line.map_err(broken)?;
            let answer = match serde_json::from_str::<Request>(&line) {
                Ok(Request { version: VERSION, ask }) => {
                    self.answer(ask).await.unwrap_or_else(Answer::Refused)
                }
                Ok(Request { version, .. }) => {
                    Answer::Refused(format!("this guard speaks version {VERSION}, not {version}"))
                }
                Err(error) => Answer::Refused(format!("invalid request: {error}")),
            };
            send(&mut lines, &Response { version: VERSION, answer }).await?;
        }
    }

    /// Handles one request; the error is a refusal, for people.
    async fn answer(&self, ask: Ask) -> Result<Answer, String> {
        match ask {
            Ask::Start(spec) => self.start(*spec).await,
            Ask::Stop { name } => self.stop(&name).await,
            Ask::Status { name } => Ok(Answer::Status(self.status(&name))),
        }
    }

    fn place(&self, name: &str) -> Result<Arc<Place>, String> {
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if name.is_empty() || name.len() > 63 || !name.bytes().all(valid) {
            return Err(format!("invalid service name `{}`", name.escape_debug()));
        }
        let mut places = self.places.lock();
        if let Some(place) = places.get(name) {
            return Ok(Arc::clone(place));
        }
        if places.len() >= SERVICES_MAX {
            return Err(format!("a guard runs at most {SERVICES_MAX} services"));
        }
        let log = ServiceLog::open(&self.folder, name)
            .map_err(|error| format!("cannot open the service's log: {error}"))?;
        let home = Home::new(Arc::clone(&self.shared), log);
        let place = Arc::new(Place { home, service: Mutex::default(), stops: AtomicU64::new(0) });
        places.insert(name.to_owned(), Arc::clone(&place));
        Ok(place)
    }

    async fn start(&self, spec: ServiceSpec) -> Result<Answer, String> {
        if spec.run == RunService::Unit {
            return Err("the guard runs commands, not units".to_owned());
        }
        let place = self.place(&spec.name)?;
        let mut service = place.service.lock().await;
        if service.as_ref().is_some_and(|service| service.key == spec.key) {
            return Ok(Answer::Done);
        }
        if let Some(old) = service.as_mut() {
            old.stop().await?;
        }
        *service = None;
        leftover::end(&spec, self.shared.record.ground()).await;
        // Recorded before it starts: if this guard is killed in between, the next one starts it.
        let name = spec.name.clone();
        self.release_ports(&spec);
        self.shared.record.put(Kept::new(spec.clone())).map_err(|error| chain(&error))?;
        match Supervised::start(&place.home, spec).await {
            Ok(supervised) => {
                *service = Some(supervised);
                Ok(Answer::Done)
            }
            Err(cannot) => {
                place.close_sockets_later();
                self.forget(&name)?;
                match cannot {
                    CannotSpawn::Program(reason) => Ok(Answer::CannotStart(reason)),
                    CannotSpawn::Taken(reason) => Ok(Answer::Taken(reason)),
                    CannotSpawn::Machine(reason) => Err(reason),
                }
            }
        }
    }

    async fn stop(&self, name: &str) -> Result<Answer, String> {
        let place = self.place(name)?;
        let mut service = place.service.lock().await;
        // It stays in the record until it has exited: if this guard is killed in between, the next
        // one still knows the process. The client then gets no response, and asks again.
        if let Some(old) = service.as_mut() {
            old.stop().await?;
        }
        *service = None;
        place.close_sockets_later();
        self.forget(name)?;
        Ok(Answer::Done)
    }

    /// Closes what stopped services were listening on where this one wants to listen.
    fn release_ports(&self, starting: &ServiceSpec) {
        let RunService::Command(command) = &starting.run else { return };
        let wanted = command.listen.values().chain(&command.ports);
        let ports: Vec<u16> = wanted.map(SocketAddr::port).collect();
        let places = self.places.lock();
        for (_, place) in places.iter().filter(|(name, _)| **name != starting.name) {
            place.close_sockets(Some(&ports));
        }
    }

    fn forget(&self, name: &str) -> Result<(), String> {
        self.shared.record.remove(name).map_err(|error| chain(&error))
    }

    fn status(&self, name: &str) -> ServiceStatus {
        self.places.lock().get(name).map(|place| place.home.status()).unwrap_or_default()
    }
}
