//! The API of a server.

use std::sync::Once;
use std::time::Duration;

use http::Method;
use reqwest::{Certificate, ClientBuilder, RequestBuilder};
use serde_json::Value;

use crate::answer::Answer;

/// The longest time for a response. A server that hangs fails its test.
const ANSWERED_WITHIN: Duration = Duration::from_secs(60);

/// The API of one server. It belongs to the test that makes it: its connections end with that test's runtime.
#[derive(Clone, Debug)]
pub struct Api {
    client: reqwest::Client,
    origin: String,
    audience: String,
}

/// A server as machines call it.
pub trait Called: Sync {
    /// Its API.
    fn api(&self) -> &Api;

    /// The nonce for the next call of a machine that got `at_hand` with its last response.
    fn next_nonce(&self, at_hand: Option<String>) -> impl Future<Output = String> + Send;
}

impl Api {
    /// The server at `origin`, whose evidence names `audience`, and which is verified with these root certificates.
    #[must_use]
    pub fn new(origin: &str, audience: &str, roots_pem: &str) -> Self {
        let roots = Certificate::from_pem_bundle(roots_pem.as_bytes()).unwrap();
        Self::with(client().tls_certs_only(roots), origin, audience)
    }

    /// A server that speaks plain HTTP, because a proxy ends TLS in front of it.
    #[must_use]
    pub fn plain(origin: &str, audience: &str) -> Self {
        Self::with(client(), origin, audience)
    }

    /// A server that this client can reach and verify.
    pub(crate) fn with(client: ClientBuilder, origin: &str, audience: &str) -> Self {
        Self {
            client: client.build().unwrap(),
            origin: origin.to_owned(),
            audience: audience.to_owned(),
        }
    }

    /// The `aud` of evidence for this server.
    #[must_use]
    pub fn audience(&self) -> &str {
        &self.audience
    }

    /// The URL of a path on it.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.origin)
    }

    /// A request builder.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, self.url(path))
    }

    /// A GET without credentials.
    pub async fn get(&self, path: &str) -> Answer {
        Answer::to(self.request(Method::GET, path)).await
    }

    /// A POST of JSON without credentials.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::to(self.request(Method::POST, path).json(body)).await
    }

    /// An unused nonce.
    pub async fn nonce(&self) -> String {
        self.get("/v1/nonce").await.expect(204).nonce().to_owned()
    }
}

impl Called for Api {
    fn api(&self) -> &Self {
        self
    }

    /// Uses the nonce of the last response, as the agent does.
    async fn next_nonce(&self, at_hand: Option<String>) -> String {
        match at_hand {
            Some(nonce) => nonce,
            None => self.nonce().await,
        }
    }
}

/// The root certificates of an unknown server. The caller compares their fingerprint.
pub(crate) async fn unverified_roots(origin: &str) -> String {
    let client = client().tls_danger_accept_invalid_certs(true);
    let api = Api::with(client, origin, origin);
    api.get("/v1/ca/bundle.pem").await.expect(200).text()
}

fn client() -> ClientBuilder {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| rustls::crypto::aws_lc_rs::default_provider().install_default().unwrap());
    reqwest::Client::builder().no_proxy().timeout(ANSWERED_WITHIN)
}
