//! Webhooks: receivers that are told of events, as Standard Webhooks has it (<https://www.standardwebhooks.com>).

mod client;
pub(crate) mod delivering;
mod message;
mod schedule;
pub(crate) mod url;

pub(crate) use client::Client;

/// The kind of a delivery that tells of no event.
pub(crate) const TEST_KIND: &str = "webhook.test";
