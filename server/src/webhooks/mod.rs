//! Webhooks: receivers of events, according to Standard Webhooks (<https://www.standardwebhooks.com>).

mod client;
pub(crate) mod delivering;
mod message;
mod schedule;
pub(crate) mod url;

pub(crate) use client::Client;

/// The kind of a test delivery, which has no event.
pub(crate) const TEST_KIND: &str = "webhook.test";
