//! `/v1/admin/machines/{id}/events`

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

/// Something that happened to a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Event {
    /// Its id.
    pub id: Uuid,
    /// When it happened.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// The machine; its record may be deleted.
    pub machine_id: Uuid,
    /// What happened, such as `machine.enrolled`.
    pub kind: String,
    /// The values before and after, where there are such.
    pub detail: Value,
}
