//! Sending to receivers: with the system's roots, directly, without following a redirect, within limits.

use std::{error::Error, sync::Arc, time::Duration};

use reqwest::{StatusCode, header::CONTENT_TYPE, redirect::Policy};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};

use super::message::Message;

/// From the beginning to the last byte of the answer that is read.
const ANSWERED_WITHIN: Duration = Duration::from_secs(10);
/// How much of an answer's body is read so that its connection can serve again.
const BODY_READ: usize = 16 * 1024;
const IDLE_CONNECTIONS: usize = 4;

/// Sends to any receiver.
pub(crate) struct Client(reqwest::Client);

/// Why there is nothing to send with.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The TLS library refused its configuration.
    #[error("TLS to receivers of webhooks cannot be set up")]
    Tls(#[from] rustls::Error),
    /// The HTTP library did.
    #[error("HTTP to receivers of webhooks cannot be set up")]
    Http(#[from] reqwest::Error),
}

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
    /// A system without roots delivers nothing over https, and says so for each delivery: that is no reason not to serve.
    pub(crate) fn new() -> Result<Self, ClientError> {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .no_proxy()
            .redirect(Policy::none())
            .timeout(ANSWERED_WITHIN)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .user_agent(concat!("assay-server/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self(client))
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
                read_some(answer).await;
                outcome(status)
            }
            Err(error) => Outcome::Failed {
                status: None,
                error: in_words(error),
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

/// Whatever comes of it: the status has said all.
async fn read_some(mut answer: reqwest::Response) {
    let mut read = 0;
    while read < BODY_READ {
        match answer.chunk().await {
            Ok(Some(chunk)) => read += chunk.len(),
            Ok(None) | Err(_) => return,
        }
    }
}

fn in_words(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return format!("no answer within {} s", ANSWERED_WITHIN.as_secs());
    }
    // The address is on record beside it.
    let error = error.without_url();
    let mut cause: &dyn Error = &error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
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
