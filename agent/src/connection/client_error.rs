//! Why a request to the server failed.

use std::time::Duration;

use assay_protocol::{Problem, ProblemKind};

use crate::{
    key_store::KeyFault,
    trust::{ServerUrl, TrustError},
};

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server cannot be authenticated.
    #[error("the server cannot be authenticated")]
    Trust(#[from] TrustError),
    /// The request cannot be encoded as JSON.
    #[error("the request cannot be encoded")]
    Encode(#[source] serde_json::Error),
    /// The HTTP library rejected the configuration.
    #[error("the HTTP client cannot be configured")]
    SetUp(#[source] reqwest::Error),
    /// The connection failed, the server was not authenticated, or the response came too late.
    #[error("{server} cannot be reached")]
    Unreachable {
        /// The server.
        server: ServerUrl,
        /// The cause.
        #[source]
        source: reqwest::Error,
    },
    /// The certificate of the server is that of a CA, as `openssl req -x509` makes them by default.
    #[error(
        "the certificate of {server} is that of a CA (CA:TRUE), which cannot be used for a server: give the server one with \
         CA:FALSE"
    )]
    CaCertificate {
        /// The server.
        server: ServerUrl,
    },
    /// The server refused the request.
    #[error("{}", describe(.0))]
    Refused(Box<Refusal>),
    /// The server refused a request without the machine's certificate. The certificate was not usable, or the server
    /// had rejected it. The server knows the key, so a new enrollment brings a new certificate.
    #[error("{}", describe(.0))]
    NoCertificate(Box<Refusal>),
    /// The key store did not sign the TLS handshake.
    #[error("the machine's key cannot sign the TLS handshake with {server}")]
    Key {
        /// The server.
        server: ServerUrl,
        /// The cause.
        #[source]
        fault: KeyFault,
    },
    /// The response violates the protocol, for example because a proxy sent an error page.
    #[error("{server} sent a response that is not Assay's (HTTP status {status}): {what}")]
    InvalidResponse {
        /// The server.
        server: ServerUrl,
        /// The HTTP status.
        status: u16,
        /// What is wrong with the response.
        what: String,
    },
}

/// A problem (RFC 9457) with its `Retry-After`.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// The problem document.
    pub problem: Problem,
    /// The server's `Retry-After`, at most one day.
    pub retry_after: Option<Duration>,
}

impl Refusal {
    /// The problem's kind, if this version knows it.
    #[must_use]
    pub fn kind(&self) -> Option<ProblemKind> {
        self.problem.kind()
    }
}

fn describe(refusal: &Refusal) -> String {
    let Problem {
        title,
        detail,
        request_id,
        ..
    } = &refusal.problem;
    let mut text = title.clone();
    if !detail.is_empty() {
        text = format!("{text}: {detail}");
    }
    if !request_id.is_empty() {
        text = format!("{text} (request {request_id})");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_one_sentence_with_the_request_id() {
        let refusal = Refusal {
            problem: Problem::new(ProblemKind::MachineRevoked, "lost".into(), "r1".into()),
            retry_after: None,
        };
        assert_eq!(
            ClientError::Refused(Box::new(refusal)).to_string(),
            "The machine is revoked: lost (request r1)"
        );
    }
}
