//! The content and signature of a webhook message.

use assay_authority::WebhookSecret;
use assay_protocol::admin_api::events::AnnouncedEvent;
use serde::Serialize;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::store::webhook_deliveries::{Claimed, Content};

/// The message for one attempt.
#[derive(Debug)]
pub(super) struct Message {
    pub(super) id: String,
    pub(super) timestamp: i64,
    pub(super) signature: String,
    pub(super) body: Vec<u8>,
}

/// Why a message cannot be sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum MessageError {
    #[error("the secret of the webhook cannot be opened with this master key")]
    Secret,
    #[error("the event was deleted before it was delivered")]
    Removed,
    #[error("cannot serialize the event")]
    Json(#[from] serde_json::Error),
}

#[derive(Serialize)]
struct Body<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    #[serde(with = "time::serde::rfc3339")]
    timestamp: OffsetDateTime,
    data: Data<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Data<'a> {
    Event(&'a AnnouncedEvent),
    Test { webhook_id: Uuid },
}

impl Message {
    /// Builds the message. Only the timestamp and the signature differ between attempts.
    pub(super) fn of(
        delivery: &Claimed,
        webhook_id: Uuid,
        secret: &WebhookSecret,
        now: OffsetDateTime,
    ) -> Result<Self, MessageError> {
        let (timestamp, data) = match &delivery.content {
            Content::Event(event) => (event.event.at, Data::Event(event)),
            Content::Test => (delivery.created_at, Data::Test { webhook_id }),
            Content::Removed => return Err(MessageError::Removed),
        };
        let kind = &delivery.kind;
        let body = serde_json::to_vec(&Body { kind, timestamp, data })?;
        let (id, timestamp) = (delivery.id.to_string(), now.unix_timestamp());
        Ok(Self {
            signature: secret.sign(&id, timestamp, &body),
            id,
            timestamp,
            body,
        })
    }
}
