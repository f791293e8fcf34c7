//! A response that was checked against the conventions for all responses. Each has a request id. Responses to agents
//! also have a fresh nonce and forbid caching. An error is a problem of the registry.

use std::fmt;

use assay_protocol::{Problem, ProblemKind, agent_api::REPLAY_NONCE, problem::MEDIA_TYPE};
use http::{HeaderMap, Method, Version};
use reqwest::RequestBuilder;
use serde::de::DeserializeOwned;
use serde_json::Value;
use uuid::Uuid;

/// The endpoints for agents.
pub const AGENT_PATHS: [&str; 4] = ["/v1/nonce", "/v1/enroll", "/v1/check-in", "/v1/renew"];

/// Texts that would reveal the implementation to a caller: SQL, messages of Postgres and Rust, and paths.
const INTERNAL: [&str; 22] = [
    "sql",
    "select ",
    "insert ",
    "update ",
    "delete from",
    "relation",
    "constraint",
    "syntax error",
    "violates",
    "postgres",
    "pool",
    "connection refused",
    "::",
    ".rs",
    "/src",
    "/tmp",
    "/home",
    "/dev/",
    "panicked",
    "struct ",
    "variant index",
    "option<",
];

/// A response with its body.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Vec<u8>,
    /// The version of HTTP.
    pub version: Version,
    asked: String,
}

impl Answer {
    /// Sends a request and checks the response against the conventions.
    ///
    /// # Panics
    /// If there is no response, or one that breaks a convention.
    pub async fn to(request: RequestBuilder) -> Self {
        Self::or_error(request)
            .await
            .unwrap_or_else(|error| panic!("no answer: {error:?}"))
    }

    /// Sends a request whose response may get lost. A response is checked against the conventions.
    ///
    /// # Errors
    /// If there was no response.
    pub async fn or_error(request: RequestBuilder) -> reqwest::Result<Self> {
        let (client, request) = request.build_split();
        let request = request?;
        let (method, path) = (request.method().clone(), request.url().path().to_owned());
        let asked = format!("{method} {}", request.url());
        let response = client.execute(request).await?;
        let answer = Self {
            status: response.status().as_u16(),
            version: response.version(),
            headers: response.headers().clone(),
            body: response.bytes().await?.to_vec(),
            asked,
        };
        answer.check(&method, &path);
        Ok(answer)
    }

    /// Returns this response if it has this status.
    ///
    /// # Panics
    /// With the response, if it has another status.
    #[must_use]
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{self}");
        self
    }

    /// Returns this response if it is this problem.
    ///
    /// # Panics
    /// With the response, if it is anything else.
    #[must_use]
    #[track_caller]
    pub fn expect_problem(self, kind: ProblemKind) -> Self {
        assert_eq!(self.problem_kind(), Some(kind), "{self}");
        self.expect(kind.status())
    }

    /// The value of a header.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The id of the request.
    #[must_use]
    pub fn request_id(&self) -> Uuid {
        let id = self
            .header("x-request-id")
            .unwrap_or_else(|| panic!("no X-Request-Id: {self}"));
        id.parse().unwrap()
    }

    /// The fresh nonce in the response.
    #[must_use]
    pub fn nonce(&self) -> &str {
        self.header(REPLAY_NONCE)
            .unwrap_or_else(|| panic!("no Replay-Nonce: {self}"))
    }

    /// `Retry-After` in seconds.
    #[must_use]
    pub fn retry_after(&self) -> Option<u64> {
        self.header("retry-after").map(|seconds| seconds.parse().unwrap())
    }

    /// The body, which must be JSON.
    #[must_use]
    pub fn json(&self) -> Value {
        self.read()
    }

    /// The body as one of the protocol's types.
    #[must_use]
    pub fn read<T: DeserializeOwned>(&self) -> T {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self}"))
    }

    /// The body as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Its problem kind, which must be a known one.
    #[must_use]
    #[track_caller]
    pub fn kind(&self) -> ProblemKind {
        self.problem_kind()
            .unwrap_or_else(|| panic!("no problem of the registry: {self}"))
    }

    /// The kind of problem. `None` if the response is no problem of the registry.
    #[must_use]
    pub fn problem_kind(&self) -> Option<ProblemKind> {
        self.problem().and_then(|problem| problem.kind())
    }

    /// The problem's detail.
    #[must_use]
    #[track_caller]
    pub fn detail(&self) -> String {
        self.problem().unwrap_or_else(|| panic!("no problem: {self}")).detail
    }

    fn problem(&self) -> Option<Problem> {
        Problem::parse(self.header("content-type"), &self.body)
    }

    fn check(&self, method: &Method, path: &str) {
        assert_eq!(self.request_id().get_version_num(), 7, "{self}");
        if AGENT_PATHS.contains(&path) {
            assert!(!self.nonce().is_empty(), "{self}");
            assert_eq!(self.header("cache-control"), Some("no-store"), "{self}");
        }
        if self.status >= 400 {
            self.check_problem(method);
        }
    }

    fn check_problem(&self, method: &Method) {
        assert_eq!(self.header("content-type"), Some(MEDIA_TYPE), "{self}");
        if method == Method::HEAD {
            assert!(self.body.is_empty(), "{self}");
            return;
        }
        let (problem, kind) = (self.problem().unwrap(), self.kind());
        assert_eq!(problem.kind_urn, format!("urn:assay:problem:{}", kind.slug()));
        assert_eq!((problem.status, kind.status()), (self.status, self.status), "{self}");
        assert_eq!(problem.title, kind.title(), "{self}");
        assert_eq!(problem.request_id, self.request_id().to_string(), "{self}");
        let mut members: Vec<String> = self.json().as_object().unwrap().keys().cloned().collect();
        // Only the import of an inventory reports errors by row.
        members.retain(|member| member != "errors" || problem.errors.is_empty());
        let has_reason = members.iter().any(|member| member == "reason");
        assert_eq!(has_reason, kind == ProblemKind::AttestationRefused, "{self}");
        members.retain(|member| member != "reason");
        assert_eq!(members, ["detail", "request_id", "status", "title", "type"], "{self}");
        assert!(!problem.detail.is_empty(), "{self}");
        let detail = problem.detail.to_lowercase();
        for word in INTERNAL {
            assert!(!detail.contains(word), "the detail contains {word:?}: {self}");
        }
        let is_temporary = matches!(kind, ProblemKind::RateLimited | ProblemKind::Unavailable);
        assert_eq!(
            self.retry_after().is_some_and(|seconds| seconds > 0),
            is_temporary,
            "{self}"
        );
        let authenticate = self.header("www-authenticate").map(str::to_lowercase);
        let asks_for_key = authenticate.is_some_and(|scheme| scheme.starts_with("bearer"));
        assert_eq!(asks_for_key, kind == ProblemKind::Unauthenticated, "{self}");
        assert_eq!(
            self.header("allow").is_some(),
            kind == ProblemKind::MethodNotAllowed,
            "{self}"
        );
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}", self.asked)?;
        writeln!(formatter, "  {} {:?}", self.status, self.headers)?;
        write!(formatter, "  {}", String::from_utf8_lossy(&self.body))
    }
}
