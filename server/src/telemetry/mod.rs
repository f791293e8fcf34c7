//! Telemetry: metrics for Prometheus, and structured logs on standard output. Neither contains a secret.

pub mod logging;
pub mod metrics;
pub mod transactions;

pub use metrics::{BatcherMetrics, Metrics};
