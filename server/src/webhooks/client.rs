//! Sending to receivers, and what their answers mean.

use std::time::Duration;

use reqwest::{StatusCode, header::CONTENT_TYPE};

use super::message::Message;
use crate::outgoing::{self, ClientError};

/// From the beginning to the last byte of the answer that is read.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// How much of an answer's body is read so that its connection can serve again.
const BODY_READ: usize = 16 * 1024;

/// Sends to any receiver.
pub(crate) struct Client(reqwest::Client);

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Outcome {
    /// The receiver took it.
    Delivered(u16),
    /// The receiver wants nothing any more.
    Gone,
    /// Anything else, in words.
    Failed { status: Option<u16>, error: String },
}

impl Client {
    /// Sends to receivers.
    pub(crate) fn new() -> Result<Self, ClientError> {
        Ok(Self(outgoing::client(ANSWERED_WITHIN)?))
    }

    pub(super) async fn send(&self, url: &str, message: Message) -> Outcome {
        let request = self
            .0
            .post(url)
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", message.id)
            .header("webhook-timestamp", message.timestamp)
            .header("webhook-signature", message.signature)
            .body(message.body);
        match request.send().await {
            Ok(answer) => {
                let status = answer.status();
                // Whatever comes of it: the status has said all.
                outgoing::read_some(answer, BODY_READ).await;
                outcome(status)
            }
            Err(error) => Outcome::Failed {
                status: None,
                error: outgoing::in_words(error),
            },
        }
    }
}

fn outcome(status: StatusCode) -> Outcome {
    if status.is_success() {
        return Outcome::Delivered(status.as_u16());
    }
    if status == StatusCode::GONE {
        return Outcome::Gone;
    }
    Outcome::Failed {
        status: Some(status.as_u16()),
        error: format!("the receiver answered {status}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_success_is_success() {
        for status in 100..600 {
            let outcome = outcome(StatusCode::from_u16(status).unwrap());
            match status {
                200..300 => assert_eq!(outcome, Outcome::Delivered(status)),
                410 => assert_eq!(outcome, Outcome::Gone),
                _ => assert!(
                    matches!(&outcome, Outcome::Failed { status: Some(noted), error } if *noted == status && error.contains(&status.to_string())),
                    "{outcome:?}"
                ),
            }
        }
    }
}
