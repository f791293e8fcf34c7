//! Calls that the server makes itself, to receivers of webhooks and to MDMs: with the system's roots, directly, without
//! following a redirect, within limits.

use std::{error::Error, sync::Arc, time::Duration};

use reqwest::redirect::Policy;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};

const IDLE_CONNECTIONS: usize = 4;

/// Why there is nothing to call with.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The TLS library refused its configuration.
    #[error("TLS to other servers cannot be set up")]
    Tls(#[from] rustls::Error),
    /// The HTTP library did.
    #[error("HTTP to other servers cannot be set up")]
    Http(#[from] reqwest::Error),
}

/// A client whose calls have ended after this time. A system without roots reaches nobody over https, and says so for
/// each call: that is no reason not to serve.
pub(crate) fn client(answered_within: Duration) -> Result<reqwest::Client, ClientError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(Policy::none())
        .timeout(answered_within)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .user_agent(concat!("assay-server/", env!("CARGO_PKG_VERSION")))
        .build()?)
}

/// The beginning of an answer's body, so far as it comes. The connection can serve again when that is all of it.
pub(crate) async fn read_some(mut answer: reqwest::Response, most: usize) -> Vec<u8> {
    let mut read = Vec::new();
    while read.len() < most {
        match answer.chunk().await {
            Ok(Some(chunk)) => read.extend_from_slice(&chunk),
            Ok(None) | Err(_) => break,
        }
    }
    read
}

/// Why a call failed, without the address, which is on record beside it.
pub(crate) fn in_words(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".to_owned();
    }
    let error = error.without_url();
    let mut cause: &dyn Error = &error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
