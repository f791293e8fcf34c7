//! `/v1/admin/events`, its stream, and `/v1/admin/machines/{id}/events`

use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;
use uuid::Uuid;

/// Something that happened, mostly to a machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Event {
    /// Its id.
    pub id: Uuid,
    /// When it happened.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// The machine, whose record may be deleted; null for an event that concerns no machine.
    pub machine_id: Option<Uuid>,
    /// What happened, such as `machine.enrolled`.
    #[cfg_attr(feature = "openapi", schema(value_type = super::changes::EventKind))]
    pub kind: String,
    /// The values before and after, if there are any.
    pub detail: Value,
}

/// An event with its sequence number.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AnnouncedEvent {
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
    /// Its sequence number. The sequence has no gaps.
    pub sequence: i64,
}

/// A stream sends this if events after the caller's last one are gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EventGap {
    /// The sequence number after which the caller wanted to continue.
    pub after: i64,
    /// The sequence number of the oldest event available.
    pub oldest_available: i64,
}
