//! Units over D-Bus, against a stand-in with the interfaces that systemd describes.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use cohort_host::{
    Exit, RunService, ServiceControl as _, ServiceError, ServiceSpec, ServiceState, Systemd,
};
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio::net::UnixStream;
use zbus::object_server::SignalEmitter;
use zbus::zvariant::{ObjectPath, OwnedObjectPath};
use zbus::{Connection, connection, fdo, interface};

const MANAGER: &str = "/org/freedesktop/systemd1";
const UNIT: &str = "/org/freedesktop/systemd1/unit/web_2eservice";

/// The state of the one unit, and its history.
#[derive(Debug, Default)]
struct State {
    active: &'static str,
    sub: &'static str,
    invocation: u8,
    restarts: u32,
    jobs: u32,
    starts: u32,
    subscribed: bool,
    fail: bool,
}

type Shared = Arc<Mutex<State>>;

fn set(state: &Shared, active: &'static str, sub: &'static str, restarts: u32) {
    let mut state = state.lock();
    (state.active, state.sub, state.restarts) = (active, sub, restarts);
}

struct Manager(Shared);
struct Unit(Shared);
struct Service(Shared);

#[interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    fn load_unit(&self, name: &str) -> fdo::Result<OwnedObjectPath> {
        match name {
            "web.service" => Ok(ObjectPath::from_static_str_unchecked(UNIT).into()),
            _ => Err(fdo::Error::Failed(format!("Unit {name} not found."))),
        }
    }

    async fn start_unit(
        &self,
        name: &str,
        mode: &str,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> fdo::Result<OwnedObjectPath> {
        assert_eq!(mode, "replace");
        let result = {
            let mut state = self.0.lock();
            state.starts += 1;
            state.invocation += 1;
            state.restarts = 0;
            (state.active, state.sub) =
                if state.fail { ("failed", "failed") } else { ("active", "running") };
            if std::mem::take(&mut state.fail) { "failed" } else { "done" }
        };
        self.job(name, result, emitter).await
    }

    async fn stop_unit(
        &self,
        name: &str,
        mode: &str,
        #[zbus(signal_emitter)] emitter: SignalEmitter<'_>,
    ) -> fdo::Result<OwnedObjectPath> {
        assert_eq!(mode, "replace");
        set(&self.0, "inactive", "dead", 0);
        self.job(name, "done", emitter).await
    }

    fn subscribe(&self) {
        self.0.lock().subscribed = true;
    }

    #[zbus(signal)]
    async fn job_removed(
        emitter: &SignalEmitter<'_>,
        id: u32,
        job: ObjectPath<'_>,
        unit: &str,
        result: &str,
    ) -> zbus::Result<()>;
}

impl Manager {
    /// Another job's end arrives first, and ours before the method's response, as may happen with
    /// systemd.
    async fn job(
        &self,
        unit: &str,
        result: &str,
        emitter: SignalEmitter<'_>,
    ) -> fdo::Result<OwnedObjectPath> {
        let (id, subscribed) = {
            let mut state = self.0.lock();
            state.jobs += 1;
            (state.jobs, state.subscribed)
        };
        let job = format!("/org/freedesktop/systemd1/job/{id}");
        let job = OwnedObjectPath::try_from(job).unwrap();
        if subscribed {
            let other = ObjectPath::from_static_str_unchecked("/org/freedesktop/systemd1/job/999");
            Self::job_removed(&emitter, 999, other, "other.service", "failed").await?;
            Self::job_removed(&emitter, id, job.as_ref(), unit, result).await?;
        }
        Ok(job)
    }
}

#[interface(name = "org.freedesktop.systemd1.Unit")]
impl Unit {
    #[zbus(property)]
    fn active_state(&self) -> String {
        self.0.lock().active.to_owned()
    }

    #[zbus(property)]
    fn sub_state(&self) -> String {
        self.0.lock().sub.to_owned()
    }

    #[zbus(property, name = "InvocationID")]
    fn invocation_id(&self) -> Vec<u8> {
        vec![self.0.lock().invocation; 16]
    }
}

#[interface(name = "org.freedesktop.systemd1.Service")]
impl Service {
    #[zbus(property, name = "MainPID")]
    fn main_pid(&self) -> u32 {
        4711
    }

    /// `CLD_EXITED`
    #[zbus(property)]
    fn exec_main_code(&self) -> i32 {
        1
    }

    #[zbus(property)]
    fn exec_main_status(&self) -> i32 {
        3
    }

    #[zbus(property, name = "NRestarts")]
    fn n_restarts(&self) -> u32 {
        self.0.lock().restarts
    }
}

struct Bench {
    folder: TempDir,
    state: Shared,
    client: Connection,
    _server: Connection,
}

impl Bench {
    async fn start() -> Self {
        let state = Shared::default();
        set(&state, "inactive", "dead", 0);
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = connection::Builder::unix_stream(theirs)
            .server(zbus::Guid::generate())
            .unwrap()
            .p2p()
            .serve_at(MANAGER, Manager(Arc::clone(&state)))
            .unwrap()
            .serve_at(UNIT, Unit(Arc::clone(&state)))
            .unwrap()
            .serve_at(UNIT, Service(Arc::clone(&state)))
            .unwrap()
            .build();
        let client = connection::Builder::unix_stream(ours).p2p().build();
        let (server, client) = tokio::try_join!(server, client).unwrap();
        let folder = tempfile::tempdir().unwrap();
        Bench { folder, state, client, _server: server }
    }

    fn systemd(&self) -> Systemd {
        Systemd::over(self.client.clone(), self.folder.path().join("systemd")).unwrap()
    }

    fn starts(&self) -> u32 {
        self.state.lock().starts
    }
}

fn spec(key: &str) -> ServiceSpec {
    ServiceSpec {
        name: "web.service".to_owned(),
        key: key.to_owned(),
        release: "d".repeat(64),
        run: RunService::Unit,
    }
}

#[tokio::test]
async fn a_unit_is_started_once_per_key_and_stopped() {
    let bench = Bench::start().await;
    let systemd = bench.systemd();
    systemd.start(&spec("1.1")).await.unwrap();
    let status = systemd.status("web.service").await.unwrap();
    assert_eq!(status.state, ServiceState::Running { pid: 4711 });
    assert_eq!((status.release.is_some(), status.exits), (true, 0));

    // The same key again, even from the next agent: nothing happens.
    systemd.start(&spec("1.1")).await.unwrap();
    bench.systemd().start(&spec("1.1")).await.unwrap();
    assert_eq!(bench.starts(), 1);
    // Another key: the unit is started again.
    systemd.start(&spec("1.2")).await.unwrap();
    assert_eq!(bench.starts(), 2);
    // An operator restarted it by hand: not the run that this key started.
    bench.state.lock().invocation += 1;
    systemd.start(&spec("1.2")).await.unwrap();
    assert_eq!(bench.starts(), 3);

    systemd.stop("web.service", Duration::from_secs(1)).await.unwrap();
    let status = systemd.status("web.service").await.unwrap();
    assert_eq!((status.state, status.release), (ServiceState::Stopped, None));
    systemd.stop("web.service", Duration::from_secs(1)).await.unwrap();
}

#[tokio::test]
async fn failures_are_told_apart() {
    let bench = Bench::start().await;
    let systemd = bench.systemd();
    bench.state.lock().fail = true;
    let error = systemd.start(&spec("1.1")).await.unwrap_err();
    assert!(matches!(&error, ServiceError::Start { .. }), "{error}");
    let status = systemd.status("web.service").await.unwrap();
    assert_eq!((status.state, status.exits), (ServiceState::Stopped, 1));
    assert_eq!(status.last_exit, Some(Exit::Status(3)));

    let error = systemd.status("absent.service").await.unwrap_err();
    assert!(matches!(&error, ServiceError::Failed { .. }), "{error}");

    // It exited, and systemd waits before restarting it.
    set(&bench.state, "activating", "auto-restart", 2);
    let status = systemd.status("web.service").await.unwrap();
    assert_eq!((status.state, status.exits), (ServiceState::Waiting, 2));
}

/// `kind name types` of each member of the interfaces in a description.
fn members(xml: &str) -> BTreeSet<String> {
    let attribute = |tag: &str, name: &str| {
        let from = tag.find(&format!(" {name}=\""))? + name.len() + 3;
        Some(tag[from..].split('"').next()?.to_owned())
    };
    let mut found = BTreeSet::new();
    let (mut interface, mut member) = (String::new(), String::new());
    for tag in xml.split('<') {
        let kind = tag.split([' ', '>', '\n']).next().unwrap_or_default();
        match kind {
            "interface" => interface = attribute(tag, "name").unwrap(),
            "method" | "signal" => {
                member = format!("{interface} {kind} {}", attribute(tag, "name").unwrap());
                if tag.contains("/>") {
                    found.insert(member.clone());
                }
            }
            "arg" => {
                let direction = attribute(tag, "direction").unwrap_or_default();
                member.push_str(&format!(" {direction}:{}", attribute(tag, "type").unwrap()));
            }
            "property" => {
                let [name, kind] = ["name", "type"].map(|name| attribute(tag, name).unwrap());
                found.insert(format!("{interface} property {name} {kind}"));
            }
            "/method" | "/signal" => {
                found.insert(member.clone());
            }
            _ => {}
        }
    }
    found.retain(|member| member.starts_with("org.freedesktop.systemd1"));
    found
}

#[tokio::test]
async fn the_stand_in_is_what_systemd_describes() {
    let bench = Bench::start().await;
    let introspectable = fdo::IntrospectableProxy::builder(&bench.client)
        .destination("org.freedesktop.systemd1")
        .unwrap()
        .path(MANAGER)
        .unwrap()
        .build()
        .await
        .unwrap();
    // Of the manager and everything below it.
    let ours = members(&introspectable.introspect().await.unwrap());
    let mut described = members(include_str!("systemd/manager.xml"));
    described.extend(members(include_str!("systemd/unit.xml")));
    assert_eq!(ours, described);
    assert_eq!(described.len(), 12);
}
