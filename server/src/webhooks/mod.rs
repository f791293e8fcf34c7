//! Webhooks: receivers of events, according to Standard Webhooks (<https://www.standardwebhooks.com>).

mod client;
pub(crate) mod delivering;
mod message;
mod schedule;
pub(crate) mod url;

use assay_protocol::admin_api::webhooks::Webhook;
use serde_json::Value;

pub(crate) use client::Client;

use crate::store::{self, StoreError};

/// The kind of a test delivery, which has no event.
pub(crate) const TEST_KIND: &str = "webhook.test";

/// A webhook as callers other than administrators see it.
pub(crate) fn masked(webhook: Webhook) -> Webhook {
    let url = url::masked(&webhook.url);
    Webhook { url, ..webhook }
}

/// A webhook as the audit log has it, which every viewer reads.
pub(crate) fn audited(webhook: &Webhook) -> Result<Value, StoreError> {
    store::json(&masked(webhook.clone()))
}
