//! The HTTP side of the exchanges: bounded in time and size, errors parsed, nonces kept.

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
    handshake::{connecting, is_about_the_certificate},
    nonce::NonceAtHand,
};
use crate::{
    clock::Clock,
    key_store::KeyFault,
    trust::{Fingerprint, ServerOnRecord, ServerUrl, Trust, TrustError, unverified_tls},
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longer than the server takes to say that its database does not answer.
const TIMEOUT: Duration = Duration::from_secs(30);
/// The longest answer that is read, in bytes. A check-in with a thousand grants fits.
const LONGEST_ANSWER: usize = 4 * 1024 * 1024;
/// The longest answer that is read from a server that has not been recognized yet, in bytes.
const LONGEST_BUNDLE: usize = 256 * 1024;
/// The longest nonce that is kept, in bytes.
const LONGEST_NONCE: usize = 512;
/// How far ahead a server may put the agent off: a machine must not fall silent for good by one wrong answer.
const LONGEST_RETRY_AFTER: Duration = Duration::from_hours(24);

/// Talks to one server, with one certificate or none.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    server: ServerOnRecord,
    identity: Identity,
    /// In place of `http` once the server has turned the certificate down.
    anonymous: OnceLock<reqwest::Client>,
    nonce: Mutex<NonceAtHand>,
    clock: Arc<dyn Clock>,
}

/// An answer that is no problem.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    body: Vec<u8>,
}

/// Why an exchange did not go through.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no way to tell the server from an impostor.
    #[error("the server cannot be recognized")]
    Trust(#[from] TrustError),
    /// The request cannot be written as JSON.
    #[error("the request cannot be written")]
    Encode(#[source] serde_json::Error),
    /// The HTTP library refused the configuration.
    #[error("the connection cannot be set up")]
    SetUp(#[source] reqwest::Error),
    /// The server could not be reached, was not recognized, or did not answer in time.
    #[error("{server} cannot be reached")]
    Unreachable {
        /// Which server.
        server: ServerUrl,
        /// Why.
        #[source]
        source: reqwest::Error,
    },
    /// The server said no.
    #[error("{}", said(.0))]
    Refused(Box<Refusal>),
    /// The server said no to a call without the machine's certificate, which could not be presented or was turned down.
    /// The machine's key is known, so enrolling again brings a new one.
    #[error("{}", said(.0))]
    NoCertificate(Box<Refusal>),
    /// The key store did not sign the handshake.
    #[error("the machine's key cannot sign the connection to {server}")]
    Key {
        /// To which server.
        server: ServerUrl,
        /// Why.
        #[source]
        fault: KeyFault,
    },
    /// The answer is not one of this protocol: a proxy's error page, say.
    #[error("{server} answered with what no Assay server says (HTTP status {status}): {what}")]
    NotAnAnswer {
        /// Which server.
        server: ServerUrl,
        /// The HTTP status.
        status: u16,
        /// What was wrong with it.
        what: String,
    },
}

/// A problem, with what came beside it.
#[derive(Debug, Clone)]
pub struct Refusal {
    /// What the server said.
    pub problem: Problem,
    /// How long it wants to be left alone, at most a day.
    pub retry_after: Option<Duration>,
}

impl Client {
    /// Sets the connection up; nothing is sent yet.
    pub(crate) fn new(server: ServerOnRecord, identity: Identity, clock: Arc<dyn Clock>) -> Result<Self, ClientError> {
        Ok(Self {
            http: http_client(tls(&server, identity.certificate())?, identity.certificate())?,
            server,
            identity,
            anonymous: OnceLock::new(),
            nonce: Mutex::default(),
            clock,
        })
    }

    /// The server that it talks to.
    pub(crate) fn server(&self) -> &ServerOnRecord {
        &self.server
    }

    /// What it presents.
    pub(crate) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Whether a refusal may be about the certificate that was presented; if so, none is presented from now on.
    pub(crate) fn turns_down_certificate(&self, refusal: &Refusal) -> bool {
        let presents = self.identity.certificate().is_some() && self.anonymous.get().is_none();
        presents && refusal.kind() == Some(ProblemKind::BadEvidence) && self.present_nothing()
    }

    /// A nonce: the one at hand, or a fresh one.
    pub(crate) async fn nonce(&self) -> Result<String, ClientError> {
        if let Some(nonce) = self.nonce_at_hand().take(self.clock.now()) {
            return Ok(nonce);
        }
        let answer = self.send(Method::HEAD, "/v1/nonce", Vec::new()).await?;
        let nonce = self.nonce_at_hand().take(self.clock.now());
        nonce.ok_or_else(|| self.not_an_answer(answer.status, "there is no Replay-Nonce in it".to_owned()))
    }

    /// Whether an answer brought a nonce that can be used at once.
    pub(crate) fn has_nonce(&self) -> bool {
        self.nonce_at_hand().is_some()
    }

    /// Posts to an agent endpoint.
    pub(crate) async fn post(&self, path: &str, request: &impl Serialize) -> Result<Answer, ClientError> {
        let body = serde_json::to_vec(request).map_err(ClientError::Encode)?;
        self.send(Method::POST, path, body).await
    }

    /// Reads an answer's body.
    pub(crate) fn read<T: DeserializeOwned>(&self, answer: &Answer) -> Result<T, ClientError> {
        serde_json::from_slice(&answer.body).map_err(|error| self.not_an_answer(answer.status, error.to_string()))
    }

    /// An answer that breaks the protocol.
    pub(crate) fn not_an_answer(&self, status: StatusCode, what: String) -> ClientError {
        not_an_answer(&self.server.url, status, what)
    }

    /// A certificate for another key than this machine's: it would be kept and shown, and serve nobody.
    pub(crate) fn foreign_certificate(&self, answer: &Answer) -> ClientError {
        self.not_an_answer(
            answer.status,
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

    async fn send(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Answer, ClientError> {
        let server = &self.server.url;
        let answer = match self.request(method.clone(), path, body.clone()).await {
            // By this machine's clock it may be valid, and by the server's it is not.
            Err(error) if is_about_the_certificate(&error) && self.present_nothing() => {
                tracing::warn!("the server does not accept this machine's certificate; going on without");
                self.request(method, path, body).await
            }
            answer => answer,
        };
        let answer = answer.map_err(|error| self.no_answer(error))?;
        self.keep_nonce(answer.headers());
        let retry_after = retry_after(answer.headers(), self.clock.now());
        let (status, headers) = (answer.status(), answer.headers().clone());
        let body = read_body(server, answer, LONGEST_ANSWER).await?;
        if status.is_success() {
            return Ok(Answer { status, body });
        }
        Err(match parse_problem(status, &headers, &body) {
            Some(problem) => self.refused(Refusal { problem, retry_after }),
            None => self.not_an_answer(status, "it is no problem of RFC 9457".to_owned()),
        })
    }

    /// Presents no certificate any more; false where it presents none.
    fn present_nothing(&self) -> bool {
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

    fn no_answer(&self, error: reqwest::Error) -> ClientError {
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
        if let Some(nonce) = nonce.filter(|nonce| !nonce.is_empty() && nonce.len() <= LONGEST_NONCE) {
            self.nonce_at_hand().keep(nonce.to_owned(), self.clock.now());
        }
    }

    /// No code panics with the lock held, and a nonce that does not serve costs one round trip.
    fn nonce_at_hand(&self) -> MutexGuard<'_, NonceAtHand> {
        self.nonce.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Fetches the server's roots from whoever answers, and trusts the one with this fingerprint alone.
pub(crate) async fn fetch_root(server: &ServerUrl, fingerprint: Fingerprint) -> Result<Trust, ClientError> {
    let http = http_client(unverified_tls()?, None)?;
    let request = http.get(server.endpoint("/v1/ca/bundle.pem"));
    let answer = request.send().await.map_err(|error| unreachable(server, error))?;
    let (status, headers) = (answer.status(), answer.headers().clone());
    let bundle = read_body(server, answer, LONGEST_BUNDLE).await?;
    if let Some(problem) = parse_problem(status, &headers, &bundle) {
        return Err(ClientError::Refused(Box::new(Refusal {
            problem,
            retry_after: None,
        })));
    }
    if !status.is_success() {
        return Err(not_an_answer(server, status, "these are no roots".to_owned()));
    }
    Ok(Trust::in_root_of(&bundle, fingerprint)?)
}

impl Refusal {
    /// Which problem of the registry it is.
    #[must_use]
    pub fn kind(&self) -> Option<ProblemKind> {
        self.problem.kind()
    }
}

fn http_client(
    tls: ClientConfig,
    certificate: Option<&Arc<ClientCertificate>>,
) -> Result<reqwest::Client, ClientError> {
    connecting(reqwest::Client::builder(), tls, certificate, CONNECT_TIMEOUT)
        .timeout(TIMEOUT)
        .user_agent(concat!("assay-agent/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(ClientError::SetUp)
}

fn tls(server: &ServerOnRecord, certificate: Option<&Arc<ClientCertificate>>) -> Result<ClientConfig, TrustError> {
    match server.url.is_https() {
        true => server.trust.tls(
            certificate
                .cloned()
                .map(|certificate| certificate as Arc<dyn ResolvesClientCert>),
        ),
        // A loopback address without TLS: there is nothing to verify, and no root may be at hand.
        false => unverified_tls(),
    }
}

async fn read_body(server: &ServerUrl, mut answer: Response, longest: usize) -> Result<Vec<u8>, ClientError> {
    let mut body = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(|error| unreachable(server, error))? {
        if body.len() + chunk.len() > longest {
            let what = format!("it is longer than {longest} bytes");
            return Err(not_an_answer(server, answer.status(), what));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// An answer to `HEAD` has no body, so that the status is all there is of its problem.
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
    Some(wait.min(LONGEST_RETRY_AFTER))
}

fn unreachable(server: &ServerUrl, error: reqwest::Error) -> ClientError {
    ClientError::Unreachable {
        server: server.clone(),
        // The URL is in the sentence already.
        source: error.without_url(),
    }
}

fn not_an_answer(server: &ServerUrl, status: StatusCode, what: String) -> ClientError {
    ClientError::NotAnAnswer {
        server: server.clone(),
        status: status.as_u16(),
        what,
    }
}

fn said(refusal: &Refusal) -> String {
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
    fn a_problem_is_read_and_a_proxys_page_is_not() {
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
    fn a_refused_head_is_known_by_its_status() {
        let problem_type = headers(CONTENT_TYPE, "application/problem+json");
        let parsed = parse_problem(StatusCode::SERVICE_UNAVAILABLE, &problem_type, b"").unwrap();
        assert_eq!(parsed.kind(), Some(ProblemKind::Unavailable));
        assert_eq!(parse_problem(StatusCode::FORBIDDEN, &problem_type, b""), None);
    }

    #[test]
    fn a_refusal_is_one_sentence_with_the_request_that_the_server_logged() {
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
