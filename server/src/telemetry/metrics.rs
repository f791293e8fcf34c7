//! Metrics in the OpenMetrics text format. Every label has a bounded set of values: a path is the matched route, and
//! there are no machines, serial numbers or addresses.

use std::time::Duration;

use assay_protocol::ProblemKind;
use http::Method;
use prometheus_client::{
    encoding::{EncodeLabelSet, text},
    metrics::{
        counter::Counter,
        family::Family,
        gauge::Gauge,
        histogram::{Histogram, exponential_buckets},
    },
    registry::{Metric, Registry, Unit},
};
use tracing::warn;

use super::{
    batchers::{self, BatcherMetrics},
    revocation::RevocationMetrics,
    transactions::TransactionMetrics,
};

/// The value of the `endpoint` label when no route matched.
pub const UNMATCHED: &str = "unmatched";

/// All metrics of one server. Recording is cheap. Create it once and share it.
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    request_seconds: Family<EndpointLabels, Histogram, fn() -> Histogram>,
    problems: Family<Labels<1>, Counter>,
    continuity: Family<Labels<1>, Counter>,
    enrollments: Family<Labels<1>, Counter>,
    certificates: Family<Labels<1>, Counter>,
    signed: Counter,
    handshakes: Family<Labels<1>, Counter>,
    /// Open connections.
    pub connections: Gauge,
    /// The group committer of check-ins.
    pub committer: BatcherMetrics,
    /// The group committer of enrollments.
    pub enrollment_committer: BatcherMetrics,
    /// The reader of keys that are not in memory.
    pub key_reader: BatcherMetrics,
    /// The reader of machines whose evaluation is not in memory.
    pub machine_reader: BatcherMetrics,
    /// The database pool.
    pub pool: PoolMetrics,
    /// Transactions, by their names.
    pub transactions: TransactionMetrics,
    /// Streams, events and webhook deliveries.
    pub events: EventMetrics,
    /// Revocation lists and OCSP.
    pub revocation: RevocationMetrics,
    /// Periodic work.
    pub background: BackgroundMetrics,
}

/// Metrics of periodic work, by its name.
pub struct BackgroundMetrics {
    runs: Family<Labels<2>, Counter>,
    seconds: Family<Labels<1>, Histogram, fn() -> Histogram>,
    succeeded: Family<Labels<1>, Gauge>,
}

/// Metrics of the database pool.
pub struct PoolMetrics {
    acquire_seconds: Histogram,
    acquire_timeouts: Counter,
    /// Open connections, including idle ones.
    pub size: Gauge,
    /// Connections that are not in use.
    pub idle: Gauge,
}

/// Metrics of streams, events and webhook deliveries.
pub struct EventMetrics {
    /// Open streams.
    pub streams: Gauge,
    waiting: Gauge,
    pending: Gauge,
    deliveries: Family<Labels<1>, Counter>,
}

const BROKEN: &str = "broken";
const DATABASE_BEHIND: &str = "database-behind";

/// The result of a TLS handshake.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Handshake {
    /// The connection is established.
    Completed,
    /// The peer used no TLS, or a version or cipher that this server does not accept.
    Failed,
    /// The peer took too long.
    TimedOut,
}

/// Names and values of labels.
pub(super) type Labels<const N: usize> = [(&'static str, &'static str); N];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    endpoint: String,
    method: &'static str,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EndpointLabels {
    endpoint: String,
    method: &'static str,
}

impl Metrics {
    /// Registers all metrics, with the value zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::with_prefix("assay");
        let to = &mut registry;
        let problems: Family<Labels<1>, Counter> = counted(to, "problems", "Error responses, by problem");
        // An alert on a rate needs the series before the first problem.
        for kind in ProblemKind::ALL {
            drop(problems.get_or_create(&[("slug", kind.slug())]));
        }
        let continuity: Family<Labels<1>, Counter> = counted(
            to,
            "continuity_breaks",
            "Check-ins that do not continue from the last answer, by result",
        );
        for result in [BROKEN, DATABASE_BEHIND] {
            drop(continuity.get_or_create(&[("result", result)]));
        }
        Self {
            requests: counted(to, "http_requests", "Requests"),
            request_seconds: timed(
                to,
                "http_request_duration",
                "Time from the end of the request's head to the response",
                Family::new_with_constructor(seconds),
            ),
            problems,
            continuity,
            enrollments: counted(to, "enrollments", "Enrollment calls, by result"),
            certificates: counted(to, "certificates_issued", "Certificates issued"),
            signed: counted(
                to,
                "certificates_signed",
                "Certificates that the issuing CA signed for machines and devices, stored or not",
            ),
            handshakes: counted(to, "tls_handshakes", "TLS handshakes, by result"),
            connections: counted(to, "connections", "Open connections"),
            committer: BatcherMetrics::register(to, &batchers::COMMITTER),
            enrollment_committer: BatcherMetrics::register(to, &batchers::ENROLLMENT_COMMITTER),
            key_reader: BatcherMetrics::register(to, &batchers::KEY_READER),
            machine_reader: BatcherMetrics::register(to, &batchers::MACHINE_READER),
            pool: PoolMetrics::register(to),
            transactions: TransactionMetrics::register(to),
            events: EventMetrics::register(to),
            revocation: RevocationMetrics::register(to),
            background: BackgroundMetrics::register(to),
            registry,
        }
    }

    /// Counts a response. `endpoint` is the matched route, or [`UNMATCHED`].
    pub fn request_answered(&self, endpoint: &str, method: &Method, status: u16, elapsed: Duration) {
        let method = method_label(method);
        self.requests
            .get_or_create(&RequestLabels {
                endpoint: endpoint.to_owned(),
                method,
                status,
            })
            .inc();
        self.request_seconds
            .get_or_create(&EndpointLabels {
                endpoint: endpoint.to_owned(),
                method,
            })
            .observe(elapsed.as_secs_f64());
    }

    /// Counts an error response.
    pub fn problem_answered(&self, kind: ProblemKind) {
        self.problems.get_or_create(&[("slug", kind.slug())]).inc();
    }

    /// Counts a check-in whose key has two holders, or whose state was restored.
    pub fn continuity_broken(&self) {
        self.continuity.get_or_create(&[("result", BROKEN)]).inc();
    }

    /// Counts a check-in with a later answer than the database has: the database was restored.
    pub fn database_behind(&self) {
        self.continuity.get_or_create(&[("result", DATABASE_BEHIND)]).inc();
    }

    /// Counts an enrollment call by `result`, such as `issued`, `repeated` or `pending`.
    pub fn enrollment_ended(&self, result: &'static str) {
        self.enrollments.get_or_create(&[("result", result)]).inc();
    }

    /// Counts a certificate issued for `purpose`, such as `enroll` or `renew`.
    pub fn certificate_issued(&self, purpose: &'static str) {
        self.certificates.get_or_create(&[("purpose", purpose)]).inc();
    }

    /// Counts a certificate that the issuing CA signed for a machine or a device. It may not be stored yet.
    pub fn certificate_signed(&self) {
        self.signed.inc();
    }

    /// Counts a TLS handshake.
    pub fn handshake_ended(&self, handshake: Handshake) {
        let result = match handshake {
            Handshake::Completed => "completed",
            Handshake::Failed => "failed",
            Handshake::TimedOut => "timed_out",
        };
        self.handshakes.get_or_create(&[("result", result)]).inc();
    }

    /// All metrics in the OpenMetrics text format.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut encoded = String::new();
        // Writing to a string does not fail. An incomplete text has no `# EOF`, and the scraper rejects it.
        if let Err(error) = text::encode(&mut encoded, &self.registry) {
            warn!(%error, "cannot encode the metrics");
        }
        encoded
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl BackgroundMetrics {
    /// Records a run of `work`, the time `elapsed`, and when it succeeded, in seconds since 1970. `None` if it failed.
    pub fn finished(&self, work: &'static str, elapsed: Duration, succeeded_at: Option<i64>) {
        let result = if succeeded_at.is_some() { "succeeded" } else { "failed" };
        self.runs.get_or_create(&[("work", work), ("result", result)]).inc();
        self.seconds
            .get_or_create(&[("work", work)])
            .observe(elapsed.as_secs_f64());
        if let Some(at) = succeeded_at {
            self.succeeded.get_or_create(&[("work", work)]).set(at);
        }
    }

    fn register(to: &mut Registry) -> Self {
        Self {
            runs: counted(to, "background_work_runs", "Runs of periodic work, by their result"),
            seconds: timed(
                to,
                "background_work_duration",
                "How long a run of periodic work took",
                Family::new_with_constructor(few_seconds),
            ),
            succeeded: counted(
                to,
                "background_work_last_success_timestamp_seconds",
                "When a run of periodic work succeeded last",
            ),
        }
    }
}

impl PoolMetrics {
    /// Records that a caller got a connection after `waited`.
    pub fn acquired(&self, waited: Duration) {
        self.acquire_seconds.observe(waited.as_secs_f64());
    }

    /// Counts a caller that got no connection in time.
    pub fn acquire_timed_out(&self) {
        self.acquire_timeouts.inc();
    }

    /// Sets the number of open connections, `idle` of which are not in use.
    pub fn sampled(&self, size: u32, idle: usize) {
        self.size.set(i64::from(size));
        self.idle.set(i64::try_from(idle).unwrap_or(i64::MAX));
    }

    fn register(to: &mut Registry) -> Self {
        Self {
            acquire_seconds: timed(
                to,
                "database_acquire_duration",
                "Time waiting for a connection of the pool",
                seconds(),
            ),
            acquire_timeouts: counted(
                to,
                "database_acquire_timeouts",
                "Timeouts while waiting for a connection",
            ),
            size: counted(to, "database_connections", "Open connections"),
            idle: counted(to, "database_idle_connections", "Connections that are not in use"),
        }
    }
}

impl EventMetrics {
    /// Sets how many events wait to be announced and how many deliveries are pending, in the database of all replicas.
    pub fn measured(&self, waiting: i64, pending: i64) {
        self.waiting.set(waiting);
        self.pending.set(pending);
    }

    /// Counts an attempt to deliver by `result`: `delivered`, `retried` or `failed`.
    pub fn delivery_attempted(&self, result: &'static str) {
        self.deliveries.get_or_create(&[("result", result)]).inc();
    }

    fn register(to: &mut Registry) -> Self {
        Self {
            streams: counted(to, "event_streams", "Open event streams"),
            waiting: counted(to, "events_waiting", "Events that wait to be announced"),
            pending: counted(to, "webhook_deliveries_pending", "Pending webhook deliveries"),
            deliveries: counted(to, "webhook_deliveries", "Attempts to deliver to webhooks, by result"),
        }
    }
}

pub(super) fn counted<M: Metric + Clone + Default>(to: &mut Registry, name: &str, help: &str) -> M {
    let metric = M::default();
    to.register(name, help, metric.clone());
    metric
}

pub(super) fn timed<M: Metric + Clone>(to: &mut Registry, name: &str, help: &str, metric: M) -> M {
    to.register_with_unit(name, help, Unit::Seconds, metric.clone());
    metric
}

/// Buckets from 100 µs, which is less than any statement takes, to 13 s, which is more than any timeout.
pub(super) fn seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.0001, 2.0, 18))
}

/// From 1 ms to 16 s. Coarse, because each name has a histogram of its own.
pub(super) fn few_seconds() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 4.0, 8))
}

/// Callers can invent methods. A label for each would grow without bound.
fn method_label(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::HEAD => "HEAD",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::OPTIONS => "OPTIONS",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorded_values_are_in_the_text() {
        let metrics = Metrics::new();
        let elapsed = Duration::from_millis(3);
        metrics.request_answered("/v1/admin/machines/{id}", &Method::GET, 200, elapsed);
        metrics.request_answered("/v1/admin/machines/{id}", &Method::GET, 200, elapsed);
        metrics.problem_answered(ProblemKind::BadNonce);
        metrics.enrollment_ended("issued");
        metrics.certificate_issued("enroll");
        metrics.certificate_signed();
        metrics.handshake_ended(Handshake::TimedOut);
        metrics.connections.inc();
        metrics.committer.done(512, elapsed, true);
        metrics.committer.done(1, elapsed, false);
        metrics.committer.answered(true);
        metrics.committer.queued(7);
        metrics.enrollment_committer.answered(false);
        metrics.key_reader.done(2, elapsed, true);
        metrics.machine_reader.failed();
        metrics.pool.acquired(elapsed);
        metrics.pool.acquire_timed_out();
        metrics.pool.size.set(16);
        metrics.pool.idle.set(15);
        metrics.events.streams.inc();
        metrics.events.measured(3, 4);
        metrics.events.delivery_attempted("retried");
        let text = metrics.encode();
        for line in [
            r#"assay_http_requests_total{endpoint="/v1/admin/machines/{id}",method="GET",status="200"} 2"#,
            r#"assay_http_request_duration_seconds_count{endpoint="/v1/admin/machines/{id}",method="GET"} 2"#,
            r#"assay_problems_total{slug="bad-nonce"} 1"#,
            r#"assay_problems_total{slug="machine-revoked"} 0"#,
            r#"assay_enrollments_total{result="issued"} 1"#,
            r#"assay_certificates_issued_total{purpose="enroll"} 1"#,
            "assay_certificates_signed_total 1",
            r#"assay_tls_handshakes_total{result="timed_out"} 1"#,
            "assay_connections 1",
            r#"assay_committer_batch_size_bucket{le="256.0"} 1"#,
            r#"assay_committer_batch_size_bucket{le="512.0"} 2"#,
            "assay_committer_commit_duration_seconds_count 2",
            r#"assay_committer_commits_total{result="committed"} 1"#,
            r#"assay_committer_commits_total{result="failed"} 1"#,
            r#"assay_committer_check_ins_total{result="recorded"} 1"#,
            "assay_committer_queue_depth 7",
            r#"assay_enrollment_committer_enrollments_total{result="special"} 1"#,
            r#"assay_key_reader_reads_total{result="read"} 1"#,
            r#"assay_machine_reader_machines_total{result="failed"} 1"#,
            "assay_database_acquire_duration_seconds_count 1",
            "assay_database_acquire_timeouts_total 1",
            "assay_database_connections 16",
            "assay_database_idle_connections 15",
            "assay_event_streams 1",
            "assay_events_waiting 3",
            "assay_webhook_deliveries_pending 4",
            r#"assay_webhook_deliveries_total{result="retried"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nin\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn revocation_metrics_are_in_the_text() {
        let metrics = Metrics::new();
        metrics.revocation.list_signed();
        metrics.revocation.lists_end_at(1_795_341_600);
        metrics.revocation.issuing_ca_ends_at(1_858_413_600);
        metrics.revocation.ocsp_answered("good");
        metrics
            .background
            .finished("sweep", Duration::from_millis(2), Some(1_795_341_600));
        metrics.background.finished("sweep", Duration::from_millis(2), None);
        let text = metrics.encode();
        for line in [
            r#"assay_background_work_runs_total{work="sweep",result="succeeded"} 1"#,
            r#"assay_background_work_runs_total{work="sweep",result="failed"} 1"#,
            r#"assay_background_work_duration_seconds_count{work="sweep"} 2"#,
            r#"assay_background_work_last_success_timestamp_seconds{work="sweep"} 1795341600"#,
            "assay_revocation_lists_signed_total 1",
            "assay_revocation_lists_end_timestamp_seconds 1795341600",
            "assay_issuing_ca_end_timestamp_seconds 1858413600",
            r#"assay_ocsp_answers_total{status="good"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\nin\n{text}");
        }
    }

    #[test]
    fn an_invented_method_has_no_series_of_its_own() {
        let metrics = Metrics::new();
        for method in ["BREW", "PROPFIND"] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            metrics.request_answered(UNMATCHED, &method, 405, Duration::ZERO);
        }
        let text = metrics.encode();
        assert!(text.contains(r#"assay_http_requests_total{endpoint="unmatched",method="other",status="405"} 2"#));
        assert!(!text.contains("BREW"));
    }
}
