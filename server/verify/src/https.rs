//! Calls to the Assay server: its keys and introspection. They use no proxy, follow no redirect, and are limited in time
//! and size.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use reqwest::{Response, StatusCode, redirect::Policy};
use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, pem::PemObject};
use url::{Host, Url};

const TIMEOUT: Duration = Duration::from_secs(5);
/// Limit for a response, in bytes.
const LONGEST: usize = 256 * 1024;

/// The server's public URL, without a trailing slash: the `iss` of its tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuerUrl(String);

/// The roots of the server's TLS certificate.
#[derive(Debug, Clone)]
pub enum Roots {
    /// The system's roots.
    System,
    /// Certificates in PEM, such as `/v1/ca/bundle.pem`.
    Pem(String),
}

/// Why a verifier cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// The issuer is not a URL of a server.
    #[error(
        "{0:?} is not the URL of a server: https, without user, query and fragment (http only on loopback addresses)"
    )]
    Issuer(String),
    /// There are no roots.
    #[error("there is no valid root certificate for the server's TLS certificate")]
    NoRoots,
    /// The TLS library rejected its configuration.
    #[error("TLS cannot be configured")]
    Tls(#[from] rustls::Error),
    /// The HTTP library failed.
    #[error("the HTTP client cannot be set up")]
    Http(#[from] reqwest::Error),
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("the server does not answer")]
    NoResponse(#[source] reqwest::Error),
    #[error("the server answered with status {0}")]
    Status(StatusCode),
    #[error("the server's response is longer than {LONGEST} bytes")]
    TooLong,
    #[error("the server's response cannot be read")]
    Unreadable(#[from] serde_json::Error),
}

impl IssuerUrl {
    /// The URL.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for IssuerUrl {
    type Err = SetUpError;

    fn from_str(text: &str) -> Result<Self, SetUpError> {
        let invalid = || SetUpError::Issuer(text.to_owned());
        let url = Url::parse(text).map_err(|_| invalid())?;
        let is_loopback = match url.host() {
            Some(Host::Domain(name)) => name == "localhost",
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        let is_plain = url.username().is_empty() && url.password().is_none();
        let is_plain = is_plain && url.query().is_none() && url.fragment().is_none();
        match url.scheme() == "https" || (url.scheme() == "http" && is_loopback) {
            true if is_plain => Ok(Self(url.as_str().trim_end_matches('/').to_owned())),
            _ => Err(invalid()),
        }
    }
}

impl fmt::Display for IssuerUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// A client that trusts these roots.
pub(crate) fn client(roots: &Roots) -> Result<reqwest::Client, SetUpError> {
    let tls = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(store(roots)?)
        .with_no_client_auth();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .no_proxy()
        .redirect(Policy::none())
        .timeout(TIMEOUT)
        .user_agent(concat!("assay-verify/", env!("CARGO_PKG_VERSION")));
    Ok(client.build()?)
}

/// Sends a request, and reads the body of a successful response.
pub(crate) async fn read(request: reqwest::RequestBuilder) -> Result<Vec<u8>, CallError> {
    let failed = |error: reqwest::Error| CallError::NoResponse(error.without_url());
    let mut response: Response = request.send().await.map_err(failed)?;
    if !response.status().is_success() {
        return Err(CallError::Status(response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > LONGEST {
            return Err(CallError::TooLong);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn store(roots: &Roots) -> Result<RootCertStore, SetUpError> {
    let mut store = RootCertStore::empty();
    match roots {
        // The system may have roots that the library cannot parse. They are skipped.
        Roots::System => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
        Roots::Pem(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|_| SetUpError::NoRoots)?;
                store.add(certificate).map_err(|_| SetUpError::NoRoots)?;
            }
        }
    }
    match store.is_empty() {
        true => Err(SetUpError::NoRoots),
        false => Ok(store),
    }
}
