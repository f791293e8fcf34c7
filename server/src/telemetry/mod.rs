//! What the server tells of itself: metrics to Prometheus, structured lines to standard output. Neither ever holds a secret.

pub mod logging;
pub mod metrics;

pub use metrics::{CommitterMetrics, Metrics};
