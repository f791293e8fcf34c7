//! The HTTP client of the exchanges. It limits time and sizes, parses problems, and stores nonces.

use std::{
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};

use assay_protocol::{Problem, ProblemKind, agent_api::REPLAY_NONCE, problem};
use reqwest::{
    Method, Response, StatusCode,
    header::{CONTENT_TYPE, HeaderMap, RETRY_AFTER},
};
use rustls::{ClientConfig, client::ResolvesClientCert};
use serde::{Serialize, de::DeserializeOwned};
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

use super::{
    client_certificate::{ClientCertificate, Identity},
    client_error::{ClientError, Refusal},
    handshake::{configure_connections, is_ca_certificate, is_certificate_rejection},
    nonce::StoredNonce,
};
use crate::{
    clock::Clock,
    trust::{Fingerprint, KnownServer, ServerUrl, Trust, TrustError, unverified_tls},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than the server takes to report that its database does not respond.
const TIMEOUT: Duration = Duration::from_secs(30);
/// Limit for a response body, in bytes. A check-in with a thousand grants is smaller.
const MAX_RESPONSE_BYTES: usize = 4 * 1024 * 1024;
/// Limit for a response body of a server that is not authenticated yet, in bytes.
const MAX_BUNDLE_BYTES: usize = 256 * 1024;
/// Limit for a nonce, in bytes.
const MAX_NONCE_BYTES: usize = 512;
/// Limit for `Retry-After`: one wrong response must not silence a machine for ever.
const MAX_RETRY_AFTER: Duration = Duration::from_hours(24);

/// An HTTP client for one server, with at most one client certificate.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    server: KnownServer,
    identity: Identity,
    /// Replaces `http` after the server has rejected the certificate.
    anonymous: OnceLock<reqwest::Client>,
    nonce: Mutex<StoredNonce>,
    clock: Arc<dyn Clock>,
}

/// A successful response.
#[derive(Debug)]
pub(crate) struct ApiResponse {
    pub(crate) status: StatusCode,
    body: Vec<u8>,
}

impl Client {
    /// Configures the client. Sends nothing.
    pub(crate) fn new(server: KnownServer, identity: Identity, clock: Arc<dyn Clock>) -> Result<Self, ClientError> {
        Ok(Self {
            http: http_client(tls(&server, identity.certificate())?, identity.certificate())?,
            server,
            identity,
            anonymous: OnceLock::new(),
            nonce: Mutex::default(),
            clock,
        })
    }

    pub(crate) fn server(&self) -> &KnownServer {
        &self.server
    }

    /// The client certificate, or why there is none.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether the request should be repeated without the certificate, because the refusal may be about it. If so, the
    /// client stops presenting it.
    pub(crate) fn drop_rejected_certificate(&self, refusal: &Refusal) -> bool {
        let presents = self.identity.certificate().is_some() && self.anonymous.get().is_none();
        presents && refusal.kind() == Some(ProblemKind::BadEvidence) && self.stop_presenting()
    }

    /// The stored nonce, or a fresh one from the server.
    pub(crate) async fn nonce(&self) -> Result<String, ClientError> {
        if let Some(nonce) = self.stored_nonce().take(self.clock.now()) {
            return Ok(nonce);
        }
        let response = self.send(Method::HEAD, "/v1/nonce", Vec::new()).await;
        // A refusal brings a nonce too. The server refuses addresses that are over their limit, but not evidence by a key
        // that it knows.
        if let Some(nonce) = self.stored_nonce().take(self.clock.now()) {
            return Ok(nonce);
        }
        Err(self.invalid_response(response?.status, "it has no Replay-Nonce header".to_owned()))
    }

    /// Whether a response brought a nonce, so that the next request needs no extra round trip.
    pub(crate) fn has_nonce(&self) -> bool {
        self.stored_nonce().is_some()
    }

    /// Posts to an agent endpoint.
    pub(crate) async fn post(&self, path: &str, request: &impl Serialize) -> Result<ApiResponse, ClientError> {
        let body = serde_json::to_vec(request).map_err(ClientError::Encode)?;
        self.send(Method::POST, path, body).await
    }

    /// Parses the body of a response.
    pub(crate) fn read<T: DeserializeOwned>(&self, response: &ApiResponse) -> Result<T, ClientError> {
        serde_json::from_slice(&response.body)
            .map_err(|error| self.invalid_response(response.status, error.to_string()))
    }

    /// An error for a response that violates the protocol.
    pub(crate) fn invalid_response(&self, status: StatusCode, what: String) -> ClientError {
        invalid_response(&self.server.url, status, what)
    }

    /// An error for a certificate that is not for this machine's key. Such a certificate would be unusable.
    pub(crate) fn wrong_certificate(&self, response: &ApiResponse) -> ClientError {
        self.invalid_response(
            response.status,
            "its certificate is not for this machine's key".to_owned(),
        )
    }

    async fn request(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Response, reqwest::Error> {
        let http = self.anonymous.get().unwrap_or(&self.http);
        let request = http.request(method.clone(), self.server.url.endpoint(path));
        let request = match method {
            Method::POST => request.header(CONTENT_TYPE, "application/json").body(body),
            _ => request,
        };
        request.send().await
    }

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<ApiResponse, ClientError> {
        let server = &self.server.url;
        let response = match self.request(method.clone(), path, body.clone()).await {
            // The clocks differ: by the server's, the certificate may have expired.
            Err(error) if is_certificate_rejection(&error) && self.stop_presenting() => {
                tracing::warn!("the server rejected this machine's certificate: continuing without it");
                self.request(method, path, body).await
            }
            response => response,
        };
        let response = response.map_err(|error| self.connection_error(error))?;
        self.keep_nonce(response.headers());
        let retry_after = retry_after(response.headers(), self.clock.now());
        let (status, headers) = (response.status(), response.headers().clone());
        let body = read_body(server, response, MAX_RESPONSE_BYTES).await?;
        if status.is_success() {
            return Ok(ApiResponse { status, body });
        }
        Err(match parse_problem(status, &headers, &body) {
            Some(problem) => self.refused(Refusal { problem, retry_after }),
            None => self.invalid_response(status, "its body is not a problem of RFC 9457".to_owned()),
        })
    }

    /// Stops presenting the certificate. Returns false if none was presented.
    fn stop_presenting(&self) -> bool {
        let anonymous = tls(&self.server, None).map_err(ClientError::Trust);
        let anonymous = anonymous.and_then(|tls| http_client(tls, None));
        let presented = self.identity.certificate().is_some();
        presented && anonymous.is_ok_and(|anonymous| self.anonymous.set(anonymous).is_ok())
    }

    fn refused(&self, refusal: Refusal) -> ClientError {
        let withheld = match &self.identity {
            Identity::None => false,
            Identity::Withheld => true,
            Identity::Certificate(_) => self.anonymous.get().is_some(),
        };
        match refusal.kind() {
            Some(ProblemKind::BadEvidence) if withheld => ClientError::NoCertificate(Box::new(refusal)),
            _ => ClientError::Refused(Box::new(refusal)),
        }
    }

    fn connection_error(&self, error: reqwest::Error) -> ClientError {
        let server = &self.server.url;
        match self
            .identity
            .certificate()
            .and_then(|certificate| certificate.take_fault())
        {
            Some(fault) => ClientError::Key {
                server: server.clone(),
                fault,
            },
            None => unreachable(server, error),
        }
    }

    fn keep_nonce(&self, headers: &HeaderMap) {
        let nonce = headers.get(REPLAY_NONCE).and_then(|nonce| nonce.to_str().ok());
        if let Some(nonce) = nonce.filter(|nonce| !nonce.is_empty() && nonce.len() <= MAX_NONCE_BYTES) {
            self.stored_nonce().keep(nonce.to_owned(), self.clock.now());
        }
    }

    /// No code panics while it holds the lock. A rejected nonce costs only one round trip.
    fn stored_nonce(&self) -> MutexGuard<'_, StoredNonce> {
        self.nonce.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fetches the roots from an unauthenticated server, and trusts only the root with this fingerprint.
pub(crate) async fn fetch_root(server: &ServerUrl, fingerprint: Fingerprint) -> Result<Trust, ClientError> {
    let http = http_client(unverified_tls()?, None)?;
    let request = http.get(server.endpoint("/v1/ca/bundle.pem"));
    let response = request.send().await.map_err(|error| unreachable(server, error))?;
    let (status, headers) = (response.status(), response.headers().clone());
    let bundle = read_body(server, response, MAX_BUNDLE_BYTES).await?;
    if let Some(problem) = parse_problem(status, &headers, &bundle) {
        return Err(ClientError::Refused(Box::new(Refusal {
            problem,
            retry_after: None,
        })));
    }
    if !status.is_success() {
        return Err(invalid_response(server, status, "it does not contain roots".to_owned()));
    }
    Ok(Trust::from_pinned_root(&bundle, fingerprint)?)
}

fn http_client(
    tls: ClientConfig,
    certificate: Option<&Arc<ClientCertificate>>,
) -> Result<reqwest::Client, ClientError> {
    configure_connections(reqwest::Client::builder(), tls, certificate, CONNECT_TIMEOUT)
        .timeout(TIMEOUT)
        .user_agent(concat!("assay-agent/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(ClientError::SetUp)
}

fn tls(server: &KnownServer, certificate: Option<&Arc<ClientCertificate>>) -> Result<ClientConfig, TrustError> {
    match server.url.is_https() {
        true => server.tls(
            certificate
                .cloned()
                .map(|certificate| certificate as Arc<dyn ResolvesClientCert>),
        ),
        // The server is on a loopback address without TLS, so there is nothing to verify. The system may have no roots.
        false => unverified_tls(),
    }
}

async fn read_body(server: &ServerUrl, mut response: Response, limit: usize) -> Result<Vec<u8>, ClientError> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| unreachable(server, error))? {
        if body.len() + chunk.len() > limit {
            let what = format!("it is longer than {limit} bytes");
            return Err(invalid_response(server, response.status(), what));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// A response to `HEAD` has no body, so the kind of problem follows from the status.
fn parse_problem(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> Option<Problem> {
    if status.is_success() {
        return None;
    }
    let content_type = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let has_problem_type = content_type.is_some_and(|value| value.starts_with(problem::MEDIA_TYPE));
    if body.is_empty() && has_problem_type {
        let kinds = [
            ProblemKind::RateLimited,
            ProblemKind::Unavailable,
            ProblemKind::Internal,
        ];
        let kind = kinds.into_iter().find(|kind| kind.status() == status.as_u16())?;
        return Some(Problem::new(kind, String::new(), String::new()));
    }
    Problem::parse(content_type, body)
}

/// Seconds or a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap, now: OffsetDateTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => {
            let date = OffsetDateTime::parse(text, &Rfc2822).ok()?;
            Duration::try_from(date - now).unwrap_or_default()
        }
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

fn unreachable(server: &ServerUrl, error: reqwest::Error) -> ClientError {
    if is_ca_certificate(&error) {
        return ClientError::CaCertificate { server: server.clone() };
    }
    ClientError::Unreachable {
        server: server.clone(),
        // The error message already contains the URL.
        source: error.without_url(),
    }
}

fn invalid_response(server: &ServerUrl, status: StatusCode, what: String) -> ClientError {
    ClientError::InvalidResponse {
        server: server.clone(),
        status: status.as_u16(),
        what,
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use time::macros::datetime;

    use super::*;

    fn headers(name: reqwest::header::HeaderName, value: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(name, reqwest::header::HeaderValue::from_static(value))])
    }

    #[rstest]
    #[case("5", Some(5))]
    #[case(" 0 ", Some(0))]
    #[case("Sun, 22 Nov 2026 10:01:00 GMT", Some(60))]
    #[case::past("Sun, 22 Nov 2026 09:00:00 GMT", Some(0))]
    #[case::bounded("99999999", Some(86_400))]
    #[case("soon", None)]
    #[case("-5", None)]
    fn retry_after_is_seconds_or_a_date(#[case] value: &'static str, #[case] seconds: Option<u64>) {
        let wait = retry_after(&headers(RETRY_AFTER, value), datetime!(2026-11-22 10:00 UTC));
        assert_eq!(wait, seconds.map(Duration::from_secs));
    }

    #[test]
    fn a_problem_is_parsed_and_an_error_page_of_a_proxy_is_not() {
        let problem = Problem::new(ProblemKind::MachineRevoked, "lost".into(), "r1".into());
        let body = serde_json::to_vec(&problem).unwrap();
        let problem_type = headers(CONTENT_TYPE, "application/problem+json");
        let parsed = parse_problem(StatusCode::FORBIDDEN, &problem_type, &body);
        assert_eq!(parsed, Some(problem));
        let html = headers(CONTENT_TYPE, "text/html");
        assert_eq!(parse_problem(StatusCode::BAD_GATEWAY, &html, b"<html>"), None);
        assert_eq!(parse_problem(StatusCode::OK, &problem_type, &body), None);
    }

    #[test]
    fn a_refused_head_is_identified_by_its_status() {
        let problem_type = headers(CONTENT_TYPE, "application/problem+json");
        let parsed = parse_problem(StatusCode::SERVICE_UNAVAILABLE, &problem_type, b"").unwrap();
        assert_eq!(parsed.kind(), Some(ProblemKind::Unavailable));
        assert_eq!(parse_problem(StatusCode::FORBIDDEN, &problem_type, b""), None);
    }
}
