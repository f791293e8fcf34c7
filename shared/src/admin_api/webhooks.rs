//! `/v1/admin/webhooks`

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

/// `POST /v1/admin/webhooks`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateWebhook {
    /// Where deliveries are sent: `https`, or `http` to a loopback address.
    pub url: String,
    /// What it is for.
    #[serde(default)]
    pub description: Option<String>,
    /// The kinds of events that it is told of; without this, all.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<super::changes::EventKind>>))]
    #[serde(default)]
    pub kinds: Option<Vec<String>>,
}

/// A webhook, without its secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Webhook {
    /// Its id.
    pub id: Uuid,
    /// Where deliveries are sent.
    pub url: String,
    /// What it is for.
    pub description: String,
    /// The kinds of events that it is told of; null for all.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<super::changes::EventKind>>))]
    pub kinds: Option<Vec<String>>,
    /// When it was made.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When the server stopped to deliver to it; null while it serves.
    #[serde(with = "time::serde::rfc3339::option")]
    pub disabled_at: Option<OffsetDateTime>,
    /// Why it did, in words.
    pub disabled_reason: Option<String>,
    /// When the receiver took a delivery last.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_delivered_at: Option<OffsetDateTime>,
    /// Since when attempts fail; null when the last one was taken, and before the first.
    #[serde(with = "time::serde::rfc3339::option")]
    pub failing_since: Option<OffsetDateTime>,
    /// How many deliveries wait.
    pub pending: i64,
}

/// A webhook with its secret, shown this once.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreatedWebhook {
    /// The webhook's record.
    #[serde(flatten)]
    pub webhook: Webhook,
    /// What the receiver verifies signatures with: `whsec_` and base64.
    pub secret: String,
}

/// `POST /v1/admin/webhooks/{id}/test`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WebhookTest {
    /// The delivery that was made: how it ends is to be seen among the webhook's deliveries.
    pub delivery_id: Uuid,
}

/// How a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum DeliveryStatus {
    /// Still to be delivered.
    Pending,
    /// The receiver took it.
    Delivered,
    /// Given up.
    Failed,
}

/// One event on its way to one webhook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WebhookDelivery {
    /// The `webhook-id` that the receiver sees, the same in every attempt.
    pub id: Uuid,
    /// The event; null for a test.
    pub event_id: Option<Uuid>,
    /// The event's sequence; null for a test.
    pub event_sequence: Option<i64>,
    /// What happened; `webhook.test` for a test.
    pub event_kind: String,
    /// How it stands.
    pub status: DeliveryStatus,
    /// How many attempts were begun.
    pub attempts: i64,
    /// When the event was announced.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When the last attempt was begun.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_attempt_at: Option<OffsetDateTime>,
    /// From when on it is attempted again; null when it is finished.
    #[serde(with = "time::serde::rfc3339::option")]
    pub next_attempt_at: Option<OffsetDateTime>,
    /// The HTTP status of the last answer; null when there was none.
    pub last_status: Option<i32>,
    /// Why the last attempt failed, in words.
    pub last_error: Option<String>,
    /// When the receiver took it.
    #[serde(with = "time::serde::rfc3339::option")]
    pub delivered_at: Option<OffsetDateTime>,
}
