//! Telemetry: metrics for Prometheus, and structured logs on standard output. Neither contains a secret.

mod batchers;
pub mod logging;
pub mod metrics;
mod revocation;
pub mod transactions;

pub use batchers::BatcherMetrics;
pub use metrics::Metrics;
pub use revocation::RevocationMetrics;
