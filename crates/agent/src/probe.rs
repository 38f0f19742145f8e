//! The plain port: `/livez`, `/readyz`, `/metrics`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State as Context;
use axum::http::StatusCode;
use axum::routing::get;
use cohort_core::ids::AppId;
use cohort_core::steps::NoTraffic;
use cohort_distribute::{ByteCounters, SourceKind};
use cohort_host::Traffic;
use tokio::sync::watch;

use crate::metrics::Metrics;

/// A server that warms up counts as ready from this share on, in per cent: load balancers that only
/// know yes and no send it half of the ramp at the most.
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
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner).insert(app.clone(), traffic);
    }

    /// What the running checks of an app say: a reason while they fail.
    pub(crate) fn fit(&self, app: &AppId, reason: Option<String>) {
        let mut unfit = self.unfit.lock().unwrap_or_else(PoisonError::into_inner);
        match reason {
            Some(reason) => unfit.insert(app.clone(), reason),
            None => unfit.remove(app),
        };
    }

    /// The smallest share of all apps, and what each says.
    pub(crate) fn now(&self) -> (u8, BTreeMap<AppId, Traffic>) {
        let all = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        let unfit = self.unfit.lock().unwrap_or_else(PoisonError::into_inner);
        let each: BTreeMap<AppId, Traffic> = all
            .iter()
            .map(|(app, traffic)| {
                let traffic = traffic.borrow().clone();
                // Never traffic to a service that does not pass its checks.
                let traffic = match (unfit.get(app), &traffic) {
                    (Some(reason), Traffic::Ready | Traffic::WarmingUp { .. }) => {
                        Traffic::Out { reason: NoTraffic::Failed { reason: reason.clone() } }
                    }
                    _ => traffic,
                };
                (app.clone(), traffic)
            })
            .collect();
        let percent = each.values().map(Traffic::percent).min().unwrap_or(0);
        (percent, each)
    }
}

/// What the probe port shows.
#[derive(Clone)]
pub(crate) struct Probe {
    pub readiness: Arc<Readiness>,
    pub metrics: Arc<Metrics>,
    pub counters: Arc<ByteCounters>,
}

pub(crate) fn router(probe: Probe) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(probe)
}

async fn readyz(Context(probe): Context<Probe>) -> (StatusCode, String) {
    let (percent, each) = probe.readiness.now();
    if each.is_empty() {
        return (StatusCode::SERVICE_UNAVAILABLE, "nothing is installed\n".into());
    }
    let text: String = each.iter().map(|(app, traffic)| format!("{app}: {traffic}\n")).collect();
    let status =
        if percent >= READY_PERCENT { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, text)
}

async fn metrics(Context(probe): Context<Probe>) -> String {
    let (percent, _) = probe.readiness.now();
    let metrics = &probe.metrics;
    metrics.set("cohort_ready", &[], f64::from(u8::from(percent >= READY_PERCENT)));
    metrics.set("cohort_build_info", &[("version", env!("CARGO_PKG_VERSION"))], 1.0);
    for (kind, name) in [(SourceKind::Mirror, "mirror"), (SourceKind::Peer, "peer")] {
        let bytes = probe.counters.received(kind) as f64;
        metrics.set("cohort_bytes_received_total", &[("from", name)], bytes);
    }
    metrics.set("cohort_units_refused_total", &[], probe.counters.refused_units() as f64);
    for (source, what, count) in probe.counters.offences() {
        let source = source.to_string();
        let labels = [("source", source.as_str()), ("what", what.name())];
        metrics.set("cohort_source_offences_total", &labels, count as f64);
    }
    metrics.text()
}
