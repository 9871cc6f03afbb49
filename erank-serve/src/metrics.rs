//! Metrics for Prometheus, in the text format of OpenMetrics.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use erank_core::{DocumentError, Ranking};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

/// A number of the backend, such as the tokens that its engine has computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct EngineMetric {
    /// The name after `erank_engine_`, without a unit's or a counter's suffix.
    pub name: &'static str,
    /// What the number counts.
    pub help: &'static str,
    /// Whether the number only grows.
    pub kind: MetricKind,
    /// The present number.
    pub value: u64,
}

/// The kind of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MetricKind {
    /// A number that only grows.
    Counter,
    /// A number that can fall.
    Gauge,
}

/// A function that returns the present numbers of the backend.
pub(crate) type EngineMetrics = Arc<dyn Fn() -> Vec<EngineMetric> + Send + Sync>;

/// The metrics of a service.
pub(crate) struct Metrics {
    registry: Registry,
    requests: Family<RouteStatus, Counter>,
    seconds: Family<Route, Histogram>,
    waiting: Gauge,
    running: Gauge,
    documents: Family<Outcome, Counter>,
    finished: Family<Reason, Counter>,
    tokens: Family<Kind, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteStatus {
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Route {
    route: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

impl Metrics {
    pub(crate) fn new(engine: Option<EngineMetrics>) -> Self {
        // From 5 ms, which an answer of a small model takes, to 11 minutes.
        const SECONDS: [f64; 12] =
            [0.005, 0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 30.0, 120.0, 660.0];
        let mut metrics = Self {
            registry: Registry::with_prefix("erank"),
            requests: Family::default(),
            seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            waiting: Gauge::default(),
            running: Gauge::default(),
            documents: Family::default(),
            finished: Family::default(),
            tokens: Family::default(),
        };
        let registry = &mut metrics.registry;
        registry.register("http_requests", "Answered requests", metrics.requests.clone());
        registry.register(
            "http_request_duration_seconds",
            "Seconds from a request's arrival to its reply's beginning",
            metrics.seconds.clone(),
        );
        registry.register("requests_waiting", "Requests in the queue", metrics.waiting.clone());
        registry.register("requests_running", "Requests that run", metrics.running.clone());
        registry.register("documents", "Documents by their outcome", metrics.documents.clone());
        registry.register("stops", "Documents by the end of their text", metrics.finished.clone());
        registry.register("tokens", "Tokens processed", metrics.tokens.clone());
        if let Some(engine) = engine {
            registry.register_collector(Box::new(EngineCollector(engine)));
        }
        metrics
    }

    pub(crate) fn answered(&self, route: &str, status: u16, time: Duration) {
        let route = route.to_owned();
        self.requests.get_or_create(&RouteStatus { route: route.clone(), status }).inc();
        self.seconds.get_or_create(&Route { route }).observe(time.as_secs_f64());
    }

    /// Counts the documents and the tokens of a ranking.
    pub(crate) fn ranked(&self, ranking: &Ranking) {
        let count = |outcome| self.documents.get_or_create(&Outcome { outcome });
        count("scored").inc_by(ranking.scored_count as u64);
        for failure in &ranking.unscored {
            let outcome = match failure.error.without_window() {
                DocumentError::Empty => "empty",
                DocumentError::Cancelled => "cancelled",
                DocumentError::PromptTooLong { .. } => "prompt_too_long",
                DocumentError::Answer(_) => "no_answer",
                _ => "failed",
            };
            count(outcome).inc();
        }
        for document in ranking.documents.iter().chain(&ranking.below_min_score) {
            let reason = serde_json::to_value(document.finish_reason).unwrap_or_default();
            let reason = reason.as_str().unwrap_or_default().to_owned();
            self.finished.get_or_create(&Reason { reason }).inc();
        }
        let tokens = |kind| self.tokens.get_or_create(&Kind { kind });
        tokens("prompt").inc_by(ranking.tokens.prompt as u64);
        tokens("generated").inc_by(ranking.tokens.generated as u64);
    }

    /// Counts a waiting request until the returned value is dropped.
    pub(crate) fn waiting(&self) -> impl Drop + use<> {
        Counted::new(&self.waiting)
    }

    /// Counts a running request until the returned value is dropped.
    pub(crate) fn running(&self) -> impl Drop + use<> {
        Counted::new(&self.running)
    }

    /// Returns all metrics as text.
    pub(crate) fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// A gauge that is one larger while this value lives.
struct Counted(Gauge);

impl Counted {
    fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// Reads the backend's numbers when the metrics are asked for.
struct EngineCollector(EngineMetrics);

impl fmt::Debug for EngineCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("EngineCollector")
    }
}

impl Collector for EngineCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for EngineMetric { name, help, kind, value } in (self.0)() {
            let name = format!("engine_{name}");
            match kind {
                MetricKind::Counter => {
                    let counter = ConstCounter::new(value);
                    let encoder =
                        encoder.encode_descriptor(&name, help, None, counter.metric_type())?;
                    counter.encode(encoder)?;
                }
                MetricKind::Gauge => {
                    let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
                    let encoder =
                        encoder.encode_descriptor(&name, help, None, gauge.metric_type())?;
                    gauge.encode(encoder)?;
                }
            }
        }
        Ok(())
    }
}
