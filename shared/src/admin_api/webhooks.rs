//! `/v1/admin/webhooks`

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::words;

/// `POST /v1/admin/webhooks`
#[derive(Debug, Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateWebhook {
    /// Where deliveries are sent: `https`, or `http` to a loopback address.
    pub url: String,
    /// What it is for.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(max_length = 2_000))]
    pub description: Option<String>,
    /// The kinds of events to deliver; all if absent.
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
    /// Where deliveries are sent. Callers of other roles than `admin` see only scheme, host and port, because for some
    /// receivers the rest is a secret.
    pub url: String,
    /// What it is for.
    pub description: String,
    /// The kinds of events to deliver; null for all.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<super::changes::EventKind>>))]
    pub kinds: Option<Vec<String>>,
    /// When it was created.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When the server disabled it; null while it is enabled.
    #[serde(with = "time::serde::rfc3339::option")]
    pub disabled_at: Option<OffsetDateTime>,
    /// Why the server disabled it.
    pub disabled_reason: Option<String>,
    /// When the receiver last accepted a delivery.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_delivered_at: Option<OffsetDateTime>,
    /// Since when attempts have failed; null if the last one succeeded, and before the first.
    #[serde(with = "time::serde::rfc3339::option")]
    pub failing_since: Option<OffsetDateTime>,
    /// The number of pending deliveries.
    pub pending: i64,
}

/// A webhook with its secret, which is shown only once.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreatedWebhook {
    /// The webhook's record.
    #[serde(flatten)]
    pub webhook: Webhook,
    /// The secret to verify signatures with: `whsec_` and base64.
    pub secret: String,
}

/// `POST /v1/admin/webhooks/{id}/test`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WebhookTest {
    /// The test delivery. The webhook's deliveries show its result.
    pub delivery_id: Uuid,
}

words! {
    /// The status of a delivery.
    pub enum DeliveryStatus {
        /// It will be attempted, or attempted again.
        Pending = "pending",
        /// The receiver accepted it.
        Delivered = "delivered",
        /// The server gave up.
        Failed = "failed",
    }
}

/// The delivery of one event to one webhook.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WebhookDelivery {
    /// The `webhook-id` header, the same in every attempt.
    pub id: Uuid,
    /// The event; null for a test.
    pub event_id: Option<Uuid>,
    /// The event's sequence number; null for a test.
    pub event_sequence: Option<i64>,
    /// What happened; `webhook.test` for a test.
    pub event_kind: String,
    /// Its status.
    pub status: DeliveryStatus,
    /// The number of attempts.
    pub attempts: i64,
    /// When the event was announced.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: OffsetDateTime,
    /// When the last attempt began.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_attempt_at: Option<OffsetDateTime>,
    /// When it will be attempted again; null when it is finished.
    #[serde(with = "time::serde::rfc3339::option")]
    pub next_attempt_at: Option<OffsetDateTime>,
    /// The HTTP status of the last response; null if there was none.
    pub last_status: Option<i32>,
    /// Why the last attempt failed.
    pub last_error: Option<String>,
    /// When the receiver accepted it.
    #[serde(with = "time::serde::rfc3339::option")]
    pub delivered_at: Option<OffsetDateTime>,
}
