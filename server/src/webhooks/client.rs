//! Sends webhook messages to receivers.

use std::time::Duration;

use reqwest::{StatusCode, header::CONTENT_TYPE};

use super::message::Message;
use crate::{
    config::PrivateAddresses,
    outgoing::{self, ClientError},
};

/// The limit for a whole call, up to the last byte read.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How much of a response body is read. A connection can be reused only if the body was read to its end.
const BODY_READ: usize = 16 * 1024;

/// The HTTP client for all receivers.
pub(crate) struct Client {
    http: reqwest::Client,
    private_addresses: PrivateAddresses,
}

/// The result of an attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum AttemptResult {
    /// The receiver accepted the message.
    Delivered(u16),
    /// The receiver wants no more messages.
    Gone,
    /// Any other result.
    Failed { status: Option<u16>, error: String },
}

impl Client {
    pub(crate) fn new(private_addresses: PrivateAddresses) -> Result<Self, ClientError> {
        Ok(Self {
            http: outgoing::client(TIMEOUT, private_addresses)?,
            private_addresses,
        })
    }

    pub(super) async fn send(&self, url: &str, message: Message) -> AttemptResult {
        if let Err(error) = outgoing::check_host(url, self.private_addresses) {
            return AttemptResult::Failed { status: None, error };
        }
        let request = self
            .http
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", message.id)
            .header("webhook-timestamp", message.timestamp)
            .header("webhook-signature", message.signature)
            .body(message.body);
        match request.send().await {
            Ok(response) => {
                let status = response.status();
                // Errors are ignored: the status is the result.
                outgoing::read_some(response, BODY_READ).await;
                parse_result(status)
            }
            Err(error) => AttemptResult::Failed {
                status: None,
                error: outgoing::in_words(error),
            },
        }
    }
}

fn parse_result(status: StatusCode) -> AttemptResult {
    if status.is_success() {
        return AttemptResult::Delivered(status.as_u16());
    }
    if status == StatusCode::GONE {
        return AttemptResult::Gone;
    }
    AttemptResult::Failed {
        status: Some(status.as_u16()),
        error: format!("the receiver responded {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_success_is_success() {
        for status in 100..600 {
            let result = parse_result(StatusCode::from_u16(status).unwrap());
            match status {
                200..300 => assert_eq!(result, AttemptResult::Delivered(status)),
                410 => assert_eq!(result, AttemptResult::Gone),
                _ => assert!(
                    matches!(&result, AttemptResult::Failed { status: Some(actual), error } if *actual == status && error.contains(&status.to_string())),
                    "{result:?}"
                ),
            }
        }
    }
}
