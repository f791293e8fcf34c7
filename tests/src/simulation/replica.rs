//! One replica: the server's own parts and router, without sockets, with a clock of its own.

use std::sync::Arc;

use assay_protocol::admin_api::api_keys::Role;
use assay_protocol::agent_api::REPLAY_NONCE;
use assay_server::clock::{Clock, MockClock};
use assay_server::config::Config;
use assay_server::running::Assembled;
use axum::Router;
use axum::body::Body;
use http::header::HOST;
use http::{HeaderValue, Method, Request};
use http_body_util::BodyExt;
use secrecy::ExposeSecret;
use serde_json::Value;
use time::{Duration, OffsetDateTime};
use tower::ServiceExt;

const PROBLEM: &str = "urn:assay:problem:";

pub(super) struct Replica {
    config: Config,
    clock: MockClock,
    /// What its clock shows beyond the right time.
    pub(super) skew: Duration,
    assembled: Option<Assembled>,
    router: Router,
}

/// What a replica answered.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Value,
    pub(super) nonce: Option<String>,
}

impl Replica {
    pub(super) async fn start(config: Config, now: OffsetDateTime) -> Self {
        let clock = MockClock::new(now);
        let assembled = assemble(&config, &clock).await;
        Self {
            config,
            clock,
            skew: Duration::ZERO,
            router: assembled.router(),
            assembled: Some(assembled),
        }
    }

    /// Loses everything that is only in memory, as in a crash.
    pub(super) async fn restart(&mut self) {
        if let Some(before) = self.assembled.take() {
            before.close().await.unwrap();
        }
        let assembled = assemble(&self.config, &self.clock).await;
        self.router = assembled.router();
        self.assembled = Some(assembled);
    }

    pub(super) async fn create_api_key(&self, role: Role) -> String {
        let assembled = self.assembled.as_ref().unwrap();
        let name = format!("simulation {role:?}");
        let key = assembled.create_api_key(&name, role).await.unwrap();
        key.expose_secret().to_owned()
    }

    /// Its clock follows the right time.
    pub(super) fn set(&self, now: OffsetDateTime) {
        self.clock.set(now + self.skew);
    }

    pub(super) fn now(&self) -> OffsetDateTime {
        self.clock.now()
    }

    pub(super) fn call(
        &self,
        method: Method,
        path: &str,
        api_key: Option<&str>,
        body: Option<&Value>,
    ) -> impl Future<Output = Answer> + use<> {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(key) = api_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let body = body.map_or_else(Body::empty, |body| Body::from(body.to_string()));
        let request = request.header("content-type", "application/json").body(body).unwrap();
        self.answer(request)
    }

    /// Asks what a token is worth.
    pub(super) fn introspect(&self, token: &str, api_key: &str) -> impl Future<Output = Answer> + use<> {
        let request = Request::builder()
            .method(Method::POST)
            .uri("/v1/introspect")
            .header("authorization", format!("Bearer {api_key}"))
            .header("content-type", "application/x-www-form-urlencoded")
            .body(Body::from(format!("token={token}")))
            .unwrap();
        self.answer(request)
    }

    fn answer(&self, mut request: Request<Body>) -> impl Future<Output = Answer> + use<> {
        // Every client of HTTP/1.1 names the host.
        let host = HeaderValue::from_static("assay.example.com");
        request.headers_mut().insert(HOST, host);
        let router = self.router.clone();
        async move {
            let (head, body) = router.oneshot(request).await.unwrap().into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let nonce = head
                .headers
                .get(REPLAY_NONCE)
                .map(|nonce| nonce.to_str().unwrap().to_owned());
            Answer {
                status: head.status.as_u16(),
                body: serde_json::from_slice(&body).unwrap_or(Value::Null),
                nonce,
            }
        }
    }
}

impl Answer {
    pub(super) fn is_success(&self) -> bool {
        self.status < 300
    }

    /// The slug of the problem; empty for a success.
    pub(super) fn problem(&self) -> &str {
        let kind = self.body["type"].as_str().unwrap_or_default();
        kind.strip_prefix(PROBLEM).unwrap_or_default()
    }

    pub(super) fn text(&self, member: &str) -> Option<&str> {
        self.body[member].as_str()
    }

    /// For the trace.
    pub(super) fn short(&self) -> String {
        if self.is_success() {
            return self.status.to_string();
        }
        let detail = self.text("detail").unwrap_or_default();
        format!("{} {}: {detail}", self.status, self.problem())
    }
}

async fn assemble(config: &Config, clock: &MockClock) -> Assembled {
    Assembled::new(config, Arc::new(clock.clone())).await.unwrap()
}
