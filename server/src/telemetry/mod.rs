//! Telemetry: metrics for Prometheus, and structured logs on standard output. Neither contains a secret.

mod batchers;
pub mod logging;
pub mod metrics;
pub mod transactions;

pub use batchers::BatcherMetrics;
pub use metrics::Metrics;
