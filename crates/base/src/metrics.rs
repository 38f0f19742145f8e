//! The metrics of a process, in Prometheus' text format.
//!
//! [`Registrar`] registers a metric and returns the typed handle that counts, so an unregistered
//! name cannot be used. Each process has its handles in one struct, made by
//! [`metrics!`](crate::metrics!). `docs/metrics.md` lists them all.

use std::fmt::Debug;
use std::hash::Hash;

use prometheus_client::encoding::{EncodeLabelSet, prometheus_text};
use prometheus_client::metrics::family::MetricConstructor;
use prometheus_client::metrics::histogram::exponential_buckets;
use prometheus_client::registry::{Metric, Registry};

pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::family::Family;
pub use prometheus_client::metrics::gauge::Gauge;
pub use prometheus_client::metrics::histogram::Histogram;

/// The `Content-Type` of [`Registrar::text`].
pub use prometheus_client::encoding::prometheus_text::CONTENT_TYPE;

/// For disk operations and requests: 0.5 ms to 16 s.
pub const LATENCY: Buckets = Buckets { first_s: 0.0005 };
/// For steps on a server: 50 ms to 27 min.
pub const STEP: Buckets = Buckets { first_s: 0.05 };
/// For rollouts: 10 s to 91 h.
pub const ROLLOUT: Buckets = Buckets { first_s: 10.0 };

/// The bounds of a histogram: sixteen, each twice the previous one.
#[derive(Debug, Clone, Copy)]
pub struct Buckets {
    first_s: f64,
}

impl MetricConstructor<Histogram> for Buckets {
    fn new_metric(&self) -> Histogram {
        Histogram::new(exponential_buckets(self.first_s, 2.0, 16))
    }
}

/// A histogram of seconds per set of labels.
pub type Histograms<L> = Family<L, Histogram, Buckets>;

/// What a port refused.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Refusal {
    /// The name of the port in the documents.
    pub port: &'static str,
    /// `rate`, `share`, `full` or `gave-way`.
    pub reason: &'static str,
}

/// Labels of a metric: a struct that derives `EncodeLabelSet`. Their values must be bounded: names
/// of steps, routes, outcomes, never free text.
pub trait Labels: EncodeLabelSet + Clone + Hash + Eq + Debug + Send + Sync + 'static {}
impl<L: EncodeLabelSet + Clone + Hash + Eq + Debug + Send + Sync + 'static> Labels for L {}

/// A struct with all metrics of a process: the prefix of their names, then for each metric its
/// field, its type, and the call of [`Registrar`] that registers it. Comes with `Default`, `text`,
/// and a test that `docs/metrics.md` of the workspace mentions every name.
#[macro_export]
macro_rules! metrics {
    ($(#[$doc:meta])* struct $name:ident($prefix:literal) {
        $($(#[$about:meta])* $field:ident: $type:ty = $kind:ident($($arg:expr),+ $(,)?),)+
    }) => {
        $(#[$doc])*
        #[derive(Debug)]
        pub(crate) struct $name {
            registrar: $crate::metrics::Registrar,
            $($(#[$about])* pub(crate) $field: $type,)+
        }

        impl Default for $name {
            fn default() -> Self {
                let mut registrar = $crate::metrics::Registrar::new($prefix);
                $(let $field = registrar.$kind($($arg),+);)+
                Self { registrar, $($field,)+ }
            }
        }

        impl $name {
            /// All metrics, for `/metrics`.
            pub(crate) fn text(&self) -> String {
                self.registrar.text()
            }
        }

        #[cfg(test)]
        #[test]
        fn every_metric_is_documented() {
            let document =
                include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/metrics.md"));
            assert_eq!($name::default().registrar.undocumented(document), [""; 0]);
        }
    };
}

/// All metrics of a process.
#[derive(Debug)]
pub struct Registrar {
    registry: Registry,
    prefix: &'static str,
    names: Vec<String>,
}

impl Registrar {
    /// An empty registry; all metrics will be called `<prefix>_<name>`.
    #[must_use]
    pub fn new(prefix: &'static str) -> Self {
        Self { registry: Registry::with_prefix(prefix), prefix, names: Vec::new() }
    }

    /// A counter. `_total` is appended to its name.
    pub fn counter(&mut self, name: &str, help: &str) -> Counter {
        self.register(name, "_total", help, Counter::default())
    }

    /// A counter per set of labels. `_total` is appended to its name.
    pub fn counters<L: Labels>(&mut self, name: &str, help: &str) -> Family<L, Counter> {
        self.register(name, "_total", help, Family::default())
    }

    /// A gauge of whole numbers.
    pub fn gauge(&mut self, name: &str, help: &str) -> Gauge {
        self.register(name, "", help, Gauge::default())
    }

    /// A gauge per set of labels.
    pub fn gauges<L: Labels>(&mut self, name: &str, help: &str) -> Family<L, Gauge> {
        self.register(name, "", help, Family::default())
    }

    /// A histogram of seconds. `_seconds` is part of its name.
    pub fn histogram(&mut self, name: &str, help: &str, buckets: Buckets) -> Histogram {
        self.register(name, "", help, buckets.new_metric())
    }

    /// A histogram of seconds per set of labels. `_seconds` is part of its name.
    pub fn histograms<L: Labels>(
        &mut self,
        name: &str,
        help: &str,
        buckets: Buckets,
    ) -> Histograms<L> {
        self.register(name, "", help, Family::new_with_constructor(buckets))
    }

    /// The metrics whose full names a document does not contain in backquotes.
    #[must_use]
    pub fn undocumented(&self, document: &str) -> Vec<&str> {
        let mentioned = |name: &&str| document.contains(&format!("`{name}`"));
        self.names.iter().map(String::as_str).filter(|name| !mentioned(name)).collect()
    }

    /// All metrics, in the format that Prometheus scrapes.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        prometheus_text::encode(&mut text, &self.registry).expect("writing to a String succeeds");
        text
    }

    fn register<M: Metric + Clone>(
        &mut self,
        name: &str,
        suffix: &str,
        help: &str,
        metric: M,
    ) -> M {
        let full = format!("{}_{name}{suffix}", self.prefix);
        assert!(!self.names.contains(&full), "metric {full} is registered twice");
        self.names.push(full);
        self.registry.register(name, help, metric.clone());
        metric
    }
}

#[cfg(test)]
#[path = "metrics_test.rs"]
mod metrics_test;
