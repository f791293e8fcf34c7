//! `/v1/admin/background-work`

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

/// One kind of periodic work, with its last run on the replica that answers. Other replicas have runs of their own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BackgroundWork {
    /// What it does, as in the log's `work` and in the metrics' label `work`.
    pub name: String,
    /// The shortest time between the starts of two runs.
    pub interval_seconds: f64,
    /// When the last run started; null before the first. Later than `last_finished_at` while a run is under way.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_started_at: Option<OffsetDateTime>,
    /// When the last finished run ended; null before that.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_finished_at: Option<OffsetDateTime>,
    /// How long the last finished run took.
    pub last_duration_ms: Option<u64>,
    /// How the last finished run failed; null if it succeeded. The cause is in the log.
    pub last_error: Option<String>,
}
