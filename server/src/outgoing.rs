//! HTTP calls that the server makes, to webhook receivers and to MDMs. They use the system's roots and no proxy, follow
//! no redirect, and are limited in time and size.

use std::{error::Error, sync::Arc, time::Duration};

use reqwest::redirect::Policy;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};

const IDLE_CONNECTIONS: usize = 4;

/// Why the HTTP client could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The TLS library rejected its configuration.
    #[error("cannot set up TLS for outgoing calls")]
    Tls(#[from] rustls::Error),
    /// The HTTP library failed.
    #[error("cannot set up the client for outgoing HTTP calls")]
    Http(#[from] reqwest::Error),
}

/// A client whose calls take at most `timeout`. On a system without roots, each https call fails with an error. That is
/// no reason to refuse to start.
pub(crate) fn client(timeout: Duration) -> Result<reqwest::Client, ClientError> {
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
        .timeout(timeout)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .user_agent(concat!("assay-server/", env!("CARGO_PKG_VERSION")))
        .build()?)
}

/// The first `most` bytes of a response body, or fewer if the connection fails. The connection can be reused if the
/// body ended there.
pub(crate) async fn read_some(mut response: reqwest::Response, most: usize) -> Vec<u8> {
    let mut read = Vec::new();
    while read.len() < most {
        match response.chunk().await {
            Ok(Some(chunk)) => read.extend_from_slice(&chunk),
            Ok(None) | Err(_) => break,
        }
    }
    read
}

/// Why a call failed. The URL is left out, because it is recorded beside this text.
pub(crate) fn in_words(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return "timed out".to_owned();
    }
    let error = error.without_url();
    let mut cause: &dyn Error = &error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
