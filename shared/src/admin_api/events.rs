//! `/v1/admin/events`, its stream, and `/v1/admin/machines/{id}/events`

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
    #[cfg_attr(feature = "openapi", schema(value_type = super::changes::EventKind))]
    pub kind: String,
    /// The values before and after, where there are such.
    pub detail: Value,
}

/// An event with its place in the order in which events are announced.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AnnouncedEvent {
    /// What happened.
    #[serde(flatten)]
    pub event: Event,
    /// Its place, without a gap.
    pub sequence: i64,
}

/// What a stream says where it cannot go on after the event that the caller saw last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct EventGap {
    /// The sequence after which the caller expected to read on.
    pub after: i64,
    /// The sequence of the first event that can follow.
    pub oldest_available: i64,
}
