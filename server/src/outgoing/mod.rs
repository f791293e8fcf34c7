//! HTTP calls that the server makes, to webhook receivers and to MDMs. They use the system's roots and no proxy, follow
//! no redirect, and are limited in time and size.

mod public_addresses;

use std::{error::Error, sync::Arc, time::Duration};

use reqwest::redirect::Policy;
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};

use self::public_addresses::PublicAddresses;
use crate::config::PrivateAddresses;

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
/// no reason to refuse to start. A URL whose host is an address needs [`check_host`] as well.
pub(crate) fn client(timeout: Duration, private: PrivateAddresses) -> Result<reqwest::Client, ClientError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let builder = match private {
        PrivateAddresses::Allow => reqwest::Client::builder(),
        PrivateAddresses::Deny => reqwest::Client::builder().dns_resolver(Arc::new(PublicAddresses)),
    };
    Ok(builder
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(Policy::none())
        .timeout(timeout)
        .pool_max_idle_per_host(IDLE_CONNECTIONS)
        .user_agent(concat!("assay-server/", env!("CARGO_PKG_VERSION")))
        .build()?)
}

/// Refuses a URL whose host is an address that the client may not connect to. It resolves no names: the client does, at
/// each connection.
pub(crate) fn check_host(url: &str, private: PrivateAddresses) -> Result<(), String> {
    match private {
        PrivateAddresses::Allow => Ok(()),
        PrivateAddresses::Deny => public_addresses::check_literal(url).map_err(|error| error.to_string()),
    }
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
