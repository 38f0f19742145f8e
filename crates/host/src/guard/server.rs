//! The guard's side of its socket.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::BufReader;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Mutex, Semaphore};
use tokio_util::sync::CancellationToken;

use super::GuardError;
use super::events::EventLog;
use super::log::ServiceLog;
use super::protocol::{Answer, Ask, Request, Response, VERSION, read_line, write_line};
use super::state::{Kept, Record};
use super::supervise::{CannotSpawn, Shared, Supervised};
use crate::service::{RunService, ServiceSpec, ServiceStatus};

/// Connections at once. The agent uses one at a time, a person another.
const CONNECTIONS_MAX: usize = 16;

/// How long a connection may say nothing.
const IDLE_MAX: Duration = Duration::from_secs(30);

/// Services of one guard: apps on one server.
const SERVICES_MAX: usize = 64;

/// One service's place. Its lock is held while it is started or stopped, so that requests about one
/// service come one after the other while the other services are answered.
#[derive(Debug)]
struct Place {
    log: Arc<ServiceLog>,
    service: Mutex<Option<Supervised>>,
    /// Asked before the lock can be had: what the service was last seen to do.
    seen: std::sync::Mutex<ServiceStatus>,
}

#[derive(Debug)]
pub(crate) struct Server {
    folder: PathBuf,
    shared: Arc<Shared>,
    places: std::sync::Mutex<BTreeMap<String, Arc<Place>>>,
    shutdown: CancellationToken,
}

impl Server {
    /// Reads what is to run and sees to it that it does.
    pub(crate) async fn open(folder: &Path) -> Result<Arc<Self>, GuardError> {
        let record = Record::open(folder)?;
        let services = record.services();
        let server = Arc::new(Server {
            folder: folder.to_owned(),
            shared: Arc::new(Shared { record, events: EventLog::new(folder) }),
            places: std::sync::Mutex::default(),
            shutdown: CancellationToken::new(),
        });
        for (name, kept) in services {
            let place = match server.place(&name) {
                Ok(place) => place,
                Err(reason) => {
                    tracing::error!(service = name, reason, "a service cannot be taken over");
                    continue;
                }
            };
            let Kept { spec, exits, last_exit, process } = kept;
            let supervised = Supervised::take_over(
                &server.shared,
                spec,
                Arc::clone(&place.log),
                process.as_ref(),
                (exits, last_exit),
            );
            *place.service.lock().await = Some(supervised);
        }
        Ok(server)
    }

    /// Answers until told to shut down.
    pub(crate) async fn serve(self: Arc<Self>, listener: UnixListener) {
        let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.shutdown.cancelled() => return,
            };
            match accepted {
                Ok((stream, _)) => {
                    // One too many is closed at once, instead of waiting in a queue without end.
                    let Ok(permit) = Arc::clone(&connections).try_acquire_owned() else { continue };
                    let server = Arc::clone(&self);
                    tokio::spawn(async move {
                        if let Err(error) = server.converse(stream).await {
                            tracing::debug!(%error, "a connection to the guard ended");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    // Out of file descriptors, say: services go on, and so does this, later.
                    tracing::warn!(%error, "the guard cannot take a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn converse(&self, stream: UnixStream) -> std::io::Result<()> {
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        loop {
            let line = tokio::time::timeout(IDLE_MAX, read_line(&mut reader));
            let Ok(line) = line.await else { return Ok(()) };
            let Some(line) = line? else { return Ok(()) };
            let (answer, last) = match serde_json::from_slice::<Request>(&line) {
                Ok(Request { version: VERSION, ask }) => {
                    let last = matches!(ask, Ask::Shutdown);
                    (self.answer(ask).await, last)
                }
                Ok(Request { version, .. }) => {
                    let text = format!("version {version} is not spoken here, {VERSION} is");
                    (Answer::Refused(text), false)
                }
                Err(error) => (Answer::Refused(format!("not understood: {error}")), false),
            };
            write_line(&mut writer, &Response { version: VERSION, answer }).await?;
            if last {
                self.shutdown.cancel();
                return Ok(());
            }
        }
    }

    async fn answer(&self, ask: Ask) -> Answer {
        let result = match ask {
            Ask::Start(spec) => self.start(spec).await,
            Ask::Stop { name } => self.stop(&name).await,
            Ask::Status { name } => Ok(Answer::Status(self.status(&name))),
            Ask::List => Ok(Answer::Names(self.shared.record.services().into_keys().collect())),
            Ask::Shutdown => {
                self.stop_all().await;
                Ok(Answer::Done)
            }
        };
        result.unwrap_or_else(Answer::Refused)
    }

    fn place(&self, name: &str) -> Result<Arc<Place>, String> {
        let valid = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        if name.is_empty() || name.len() > 63 || !name.bytes().all(valid) {
            return Err(format!("`{}` is no service name", name.escape_debug()));
        }
        let mut places = crate::lock(&self.places);
        if let Some(place) = places.get(name) {
            return Ok(Arc::clone(place));
        }
        if places.len() >= SERVICES_MAX {
            return Err(format!("a guard runs {SERVICES_MAX} services at the most"));
        }
        let log = ServiceLog::open(&self.folder, name)
            .map_err(|error| format!("the service's log cannot be opened: {error}"))?;
        let place = Place { log, service: Mutex::default(), seen: std::sync::Mutex::default() };
        let place = Arc::new(place);
        places.insert(name.to_owned(), Arc::clone(&place));
        Ok(place)
    }

    async fn start(&self, spec: ServiceSpec) -> Result<Answer, String> {
        if matches!(spec.run, RunService::Unit(_)) {
            return Err("the guard runs commands, no units".to_owned());
        }
        let place = self.place(&spec.name)?;
        let mut service = place.service.lock().await;
        if service.as_ref().is_some_and(|service| service.spec.key == spec.key) {
            return Ok(Answer::Done);
        }
        if let Some(old) = service.take() {
            old.stop().await;
        }
        // Written down before it is started: a guard that is killed in between starts it.
        let kept = Kept { spec: spec.clone(), exits: 0, last_exit: None, process: None };
        self.keep(&spec.name, Some(kept))?;
        match Supervised::start(&self.shared, spec.clone(), Arc::clone(&place.log)) {
            Ok(supervised) => {
                *service = Some(supervised);
                Ok(Answer::Done)
            }
            Err(cannot) => {
                *crate::lock(&place.seen) = ServiceStatus::default();
                self.keep(&spec.name, None)?;
                match cannot {
                    CannotSpawn::Program(reason) => Ok(Answer::CannotStart(reason)),
                    CannotSpawn::Here(reason) => Err(reason),
                }
            }
        }
    }

    async fn stop(&self, name: &str) -> Result<Answer, String> {
        let place = self.place(name)?;
        let mut service = place.service.lock().await;
        // It stays in the record until it has ended: a guard that is killed in between would lose
        // sight of its process otherwise. The one who asked gets no answer then and asks again.
        if let Some(old) = service.take() {
            *crate::lock(&place.seen) = old.status();
            old.stop().await;
        }
        *crate::lock(&place.seen) = ServiceStatus::default();
        self.keep(name, None)?;
        Ok(Answer::Done)
    }

    fn keep(&self, name: &str, kept: Option<Kept>) -> Result<(), String> {
        let change = |services: &mut BTreeMap<String, Kept>| {
            match kept {
                Some(kept) => services.insert(name.to_owned(), kept),
                None => services.remove(name),
            };
        };
        self.shared.record.change(change).map_err(|error| crate::output::chain(&error))
    }

    fn status(&self, name: &str) -> ServiceStatus {
        let place = crate::lock(&self.places).get(name).cloned();
        let Some(place) = place else { return ServiceStatus::default() };
        let status = match place.service.try_lock() {
            Ok(service) => service.as_ref().map(Supervised::status).unwrap_or_default(),
            Err(_) => return crate::lock(&place.seen).clone(),
        };
        *crate::lock(&place.seen) = status.clone();
        status
    }

    async fn stop_all(&self) {
        let places: Vec<_> = crate::lock(&self.places).values().cloned().collect();
        let mut stopping = tokio::task::JoinSet::new();
        for place in places {
            stopping.spawn(async move {
                if let Some(service) = place.service.lock().await.take() {
                    service.stop().await;
                }
            });
        }
        stopping.join_all().await;
    }
}
