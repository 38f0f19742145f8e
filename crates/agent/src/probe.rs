//! The plain port: `/livez`, `/readyz`, `/metrics`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::extract::State as Context;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use cohort_base::metrics::Counter;
use cohort_core::ids::AppId;
use cohort_core::machine::DiskSpace;
use cohort_core::steps::NoTraffic;
use cohort_distribute::SourceKind;
use cohort_host::guard::GuardClient;
use cohort_host::{ServiceControl as _, Traffic, boot_time_ms};
use cohort_wire::agent::LACKING;
use parking_lot::Mutex;
use tokio::sync::watch;

use crate::contacts::monotonic_ms;
use crate::metrics::{Metrics, OfApp, OfDisk, Offence, ReceivedFrom, Version};
use crate::shared::Shared;
use crate::start::guard_dir;

/// A server that warms up is ready from this share of traffic on, in per cent: a load balancer that
/// knows only yes and no cuts off half of the ramp at most.
pub const READY_PERCENT: u8 = 50;

/// Whether this server wants traffic, over all its apps.
#[derive(Debug, Default)]
pub(crate) struct Readiness {
    traffic: Mutex<BTreeMap<AppId, watch::Receiver<Traffic>>>,
    /// Apps whose running checks fail, and why.
    unfit: Mutex<BTreeMap<AppId, String>>,
}

impl Readiness {
    pub(crate) fn add(&self, app: &AppId, traffic: watch::Receiver<Traffic>) {
        self.traffic.lock().insert(app.clone(), traffic);
    }

    pub(crate) fn remove(&self, app: &AppId) {
        self.traffic.lock().remove(app);
        self.unfit.lock().remove(app);
    }

    /// The running checks of an app: why they fail, or `None` while they pass.
    pub(crate) fn fit(&self, app: &AppId, reason: Option<String>) {
        let mut unfit = self.unfit.lock();
        match reason {
            Some(reason) => unfit.insert(app.clone(), reason),
            None => unfit.remove(app),
        };
    }

    /// The smallest share of all apps, and what each says. An app that has nothing here, and owes
    /// nothing, does not count beside others.
    pub(crate) fn now(&self) -> (u8, BTreeMap<AppId, Traffic>) {
        let all = self.traffic.lock();
        let unfit = self.unfit.lock();
        let each: BTreeMap<AppId, Traffic> = all
            .iter()
            .map(|(app, traffic)| {
                let traffic = traffic.borrow().clone();
                // No traffic to a service that fails its checks.
                let traffic = match (unfit.get(app), &traffic) {
                    (Some(reason), Traffic::Ready | Traffic::WarmingUp { .. }) => {
                        Traffic::Out { reason: NoTraffic::Failed { reason: reason.clone() } }
                    }
                    _ => traffic,
                };
                (app.clone(), traffic)
            })
            .collect();
        let absent = Traffic::Out { reason: NoTraffic::NothingInstalled };
        let present = each.values().filter(|traffic| **traffic != absent);
        let percent = present.map(Traffic::percent).min().unwrap_or(0);
        (percent, each)
    }
}

pub(crate) fn router(shared: Arc<Shared>) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .route(LACKING, get(lacking))
        .with_state(shared)
}

async fn readyz(Context(shared): Context<Arc<Shared>>) -> (StatusCode, String) {
    let (percent, each) = shared.readiness.now();
    if each.is_empty() {
        return (StatusCode::SERVICE_UNAVAILABLE, "nothing is installed\n".into());
    }
    let text: String = each.iter().map(|(app, traffic)| format!("{app}: {traffic}\n")).collect();
    let status =
        if percent >= READY_PERCENT { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, text)
}

fn space_name(space: DiskSpace) -> &'static str {
    match space {
        DiskSpace::Enough => "enough",
        DiskSpace::Low => "low",
        DiskSpace::Exhausted => "exhausted",
        DiskSpace::ReadOnly => "read-only",
    }
}

/// A server without a member knows of its group what its orders say, and nothing once they are
/// stale: not even whether the members live.
fn unknown_servers(shared: &Shared) -> i64 {
    let unknown = match shared.handle() {
        Some(handle) => handle.view().unknown_servers(&shared.contacts.all(), monotonic_ms()),
        None if shared.orders.borrow().as_ref().is_some_and(|it| it.fresh(boot_time_ms())) => 0,
        None => 1 + shared.members().iter().filter(|it| it.server != *shared.server()).count(),
    };
    unknown.try_into().unwrap_or(i64::MAX)
}

async fn metrics(Context(shared): Context<Arc<Shared>>) -> impl IntoResponse {
    let (percent, _) = shared.readiness.now();
    let (metrics, counters) = (&shared.metrics, &shared.downloads.context().counters);
    metrics.ready.set((percent >= READY_PERCENT).into());
    metrics.build.get_or_create(&Version { version: env!("CARGO_PKG_VERSION") }).set(1);
    metrics.servers_unknown.set(unknown_servers(&shared));
    metrics.disk.clear();
    metrics.disk.get_or_create(&OfDisk { space: space_name(*shared.disk.borrow()) }).set(1);
    // These are counted where they happen, in numbers of their own.
    let copy = |counter: &Counter, count| counter.inner().store(count, Ordering::Relaxed);
    for (kind, name) in [(SourceKind::Mirror, "mirror"), (SourceKind::Peer, "peer")] {
        let counter = metrics.bytes_received.get_or_create(&ReceivedFrom { from: name });
        copy(&counter, counters.received(kind));
    }
    copy(&metrics.units_refused, counters.refused_units());
    for (source, what, count) in counters.offences() {
        let labels = Offence { source: source.to_string(), what: what.name() };
        copy(&metrics.source_offences.get_or_create(&labels), count);
    }
    count_services(&shared).await;
    ([(CONTENT_TYPE, cohort_base::metrics::CONTENT_TYPE)], metrics.text())
}

/// How old what is told of services may be.
const SERVICES_EVERY: Duration = Duration::from_secs(1);

/// Longest wait for the guard: it answers from memory.
const GUARD_MAX: Duration = Duration::from_secs(1);

/// What the services under the guard use. One look at a time, on one connection at a time, and at
/// most one look a second: those who scrape take nothing from what starts and stops services.
async fn count_services(shared: &Shared) {
    let Ok(mut looked) = shared.looked_at_services.try_lock() else { return };
    if looked.is_some_and(|at| at.elapsed() < SERVICES_EVERY) {
        return;
    }
    // None is started for this.
    let guard = GuardClient::new(guard_dir(&shared.config), None);
    let (_, apps) = shared.readiness.now();
    let mut seen = Vec::new();
    let all = async {
        for app in apps.into_keys() {
            if let Ok(status) = guard.status(app.as_str()).await {
                seen.push((OfApp { app: app.to_string() }, status));
            }
        }
    };
    let _late = tokio::time::timeout(GUARD_MAX, all).await;
    *looked = Some(Instant::now());
    let Metrics { service_exits, service_memory_bytes, service_cpu, service_processes, .. } =
        &*shared.metrics;
    service_exits.clear();
    service_memory_bytes.clear();
    service_cpu.clear();
    service_processes.clear();
    let gauge = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    for (app, status) in seen {
        let usage = status.usage;
        if status.release.is_some() {
            service_exits.get_or_create(&app).inner().store(status.exits, Ordering::Relaxed);
        }
        if let Some(memory) = usage.memory {
            service_memory_bytes.get_or_create(&app).set(gauge(memory));
        }
        if let Some(pids) = usage.pids {
            service_processes.get_or_create(&app).set(gauge(pids));
        }
        if let Some(cpu) = usage.cpu_us {
            service_cpu.get_or_create(&app).inner().store(cpu, Ordering::Relaxed);
        }
    }
}

/// What this machine lacks to confine releases, for `cohort agent show`.
async fn lacking(Context(shared): Context<Arc<Shared>>) -> Response {
    match shared.lacking.get() {
        Some(lacking) => Json(lacking).into_response(),
        None => (StatusCode::SERVICE_UNAVAILABLE, "the agent is starting\n").into_response(),
    }
}

#[cfg(test)]
mod probe_test {
    use std::sync::Arc;

    use cohort_core::steps::NoTraffic;
    use cohort_host::Traffic;
    use tokio::sync::watch;

    use cohort_core::ids::MemberId;
    use cohort_core::orders::MemberAddress;

    use super::{Readiness, boot_time_ms, unknown_servers};
    use crate::testing::{Lab, received, server};

    #[tokio::test]
    async fn a_server_without_a_member_knows_of_no_server_once_its_orders_are_stale() {
        let lab = Lab::new().await;
        let shared = lab.agent("s9", None).await;
        assert_eq!(unknown_servers(&shared), 1, "no group has spoken");
        let member = |n: u64| MemberAddress {
            server: server(&format!("s{n}")),
            address: "127.0.0.1:1".to_owned(),
            member: MemberId(n),
        };
        shared.book.lock().learn(&[member(1), member(2), member(3)]);
        let mut orders = received(Vec::new(), None);
        (orders.asked_ms, orders.valid_ms) = (boot_time_ms(), u64::MAX);
        shared.orders.send_replace(Some(Arc::new(orders.clone())));
        assert_eq!(unknown_servers(&shared), 0);
        orders.valid_ms = 0;
        shared.orders.send_replace(Some(Arc::new(orders)));
        assert_eq!(unknown_servers(&shared), 4, "the members, and itself");
    }

    #[test]
    fn the_server_is_as_ready_as_its_least_ready_app() {
        let readiness = Readiness::default();
        assert_eq!(readiness.now().0, 0, "nothing is installed");
        let web = watch::Sender::new(Traffic::Ready);
        readiness.add(&"web".parse().unwrap(), web.subscribe());
        assert_eq!(readiness.now().0, 100);
        let db = watch::Sender::new(Traffic::WarmingUp { percent: 30 });
        readiness.add(&"db".parse().unwrap(), db.subscribe());
        assert_eq!(readiness.now().0, 30);
        db.send_replace(Traffic::Draining);
        assert_eq!(readiness.now().0, 0);
        let absent = Traffic::Out { reason: NoTraffic::NothingInstalled };
        db.send_replace(absent.clone());
        assert_eq!(readiness.now().0, 100, "a new app does not take the others out");
        web.send_replace(absent);
        assert_eq!(readiness.now().0, 0, "nothing is installed");
    }

    #[test]
    fn an_app_that_fails_its_running_checks_is_out_until_they_pass() {
        let readiness = Readiness::default();
        let app = "web".parse().unwrap();
        let web = watch::Sender::new(Traffic::Ready);
        readiness.add(&app, web.subscribe());
        readiness.fit(&app, Some("connection refused".into()));
        let (percent, each) = readiness.now();
        let reason = NoTraffic::Failed { reason: "connection refused".into() };
        let out = Traffic::Out { reason };
        assert_eq!((percent, each.get(&app)), (0, Some(&out)));
        // What an activation says about traffic is not overruled.
        web.send_replace(Traffic::Draining);
        assert_eq!(readiness.now().1.get(&app), Some(&Traffic::Draining));
        web.send_replace(Traffic::Ready);
        readiness.fit(&app, None);
        assert_eq!(readiness.now().0, 100);
    }
}
