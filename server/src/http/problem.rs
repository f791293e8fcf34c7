//! Error responses. A handler returns an [`ApiProblem`], and the outermost layer writes the body. Only that layer knows
//! the request id, and it also formats axum's own rejections.

use assay_protocol::{
    Chain, Problem, ProblemKind,
    attestation::AttestationRefusal,
    problem::{LineError, MEDIA_TYPE},
};
use axum::{
    body::Body,
    extract::Request,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use time::OffsetDateTime;

use super::request_id::RequestId;
use crate::store::{StoreError, batcher::BatchError};

/// How long a caller should wait before it repeats a call that failed because of an outage.
const UNAVAILABLE_RETRY_SECONDS: u64 = 5;

/// A problem of the registry, with the details of this request.
#[derive(Debug, Clone)]
pub(crate) struct ApiProblem {
    kind: ProblemKind,
    detail: String,
    retry_after_seconds: Option<u64>,
    nonce_after: Option<OffsetDateTime>,
    errors: Vec<LineError>,
    reason: Option<AttestationRefusal>,
    accepts_basic: bool,
}

pub(crate) type ApiResult<T> = Result<T, ApiProblem>;

/// The nonce that the machine used last. The nonce layer then issues a later one, even if clocks differ.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NonceAfter(pub(crate) OffsetDateTime);

impl ApiProblem {
    /// `detail` is sent to the caller. It says what is wrong, and reveals nothing internal.
    pub(crate) fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            retry_after_seconds: None,
            nonce_after: None,
            errors: Vec::new(),
            reason: None,
            accepts_basic: false,
        }
    }

    pub(crate) fn kind(&self) -> ProblemKind {
        self.kind
    }

    pub(crate) fn detail(&self) -> &str {
        &self.detail
    }

    pub(crate) fn seconds_to_wait(&self) -> Option<u64> {
        self.retry_after_seconds
    }

    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    /// Challenges a caller without valid credentials to HTTP Basic, too. Many clients send it only after a challenge.
    pub(crate) fn or_basic(mut self, is_accepted: bool) -> Self {
        self.accepts_basic = is_accepted;
        self
    }

    pub(crate) fn nonce_after(mut self, last_nonce: OffsetDateTime) -> Self {
        self.nonce_after = Some(last_nonce);
        self
    }

    /// Adds the errors of a file, row by row.
    pub(crate) fn errors(mut self, errors: Vec<LineError>) -> Self {
        self.errors = errors;
        self
    }

    /// Adds the reason for a refused attestation in machine-readable form.
    pub(crate) fn reason(mut self, reason: AttestationRefusal) -> Self {
        self.reason = Some(reason);
        self
    }

    pub(crate) fn not_found(what: &str) -> Self {
        Self::new(ProblemKind::NotFound, format!("there is no such {what}"))
    }

    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(ProblemKind::Malformed, detail)
    }

    pub(crate) fn unavailable() -> Self {
        Self::new(ProblemKind::Unavailable, "the database is unreachable; retry later")
            .retry_after(UNAVAILABLE_RETRY_SECONDS)
    }

    /// Logs the cause, which is not sent to the caller.
    pub(crate) fn internal(cause: &(dyn std::error::Error + 'static)) -> Self {
        tracing::error!(error = %Chain(cause), "a request failed");
        Self::new(
            ProblemKind::Internal,
            "the server failed; its log has the cause with this request id",
        )
    }
}

impl From<StoreError> for ApiProblem {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::Unavailable(_) => {
                tracing::warn!(error = %Chain(&error), "the database is not available");
                Self::unavailable()
            }
            StoreError::Refused(_) | StoreError::Corrupt(_) => Self::internal(&error),
        }
    }
}

impl From<BatchError> for ApiProblem {
    fn from(error: BatchError) -> Self {
        match &error {
            BatchError::Overloaded => Self::unavailable(),
            BatchError::Store(cause) => match **cause {
                StoreError::Unavailable(_) => {
                    tracing::warn!(error = %Chain(&error), "the database is not available");
                    Self::unavailable()
                }
                StoreError::Refused(_) | StoreError::Corrupt(_) => Self::internal(&error),
            },
        }
    }
}

impl IntoResponse for ApiProblem {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.kind.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = status.into_response();
        if let Some(seconds) = self.retry_after_seconds {
            response
                .headers_mut()
                .insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.kind == ProblemKind::Unauthenticated {
            response
                .headers_mut()
                .insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            if self.accepts_basic {
                let basic = HeaderValue::from_static("Basic realm=\"assay\", charset=\"UTF-8\"");
                response.headers_mut().append(header::WWW_AUTHENTICATE, basic);
            }
        }
        if let Some(last_nonce) = self.nonce_after {
            response.extensions_mut().insert(NonceAfter(last_nonce));
        }
        response.extensions_mut().insert(self);
        response
    }
}

/// The problem in a response, for the metrics.
pub(crate) fn kind_of(response: &Response) -> Option<ProblemKind> {
    response.extensions().get::<ApiProblem>().map(|problem| problem.kind)
}

/// Writes the body of every problem.
pub(super) async fn write_bodies(
    request_id: RequestId,
    request: Request,
    next: impl AsyncFnOnce(Request) -> Response,
) -> Response {
    let mut response = next(request).await;
    let Some(problem) = response.extensions().get::<ApiProblem>() else {
        return response;
    };
    let body = Problem {
        errors: problem.errors.clone(),
        reason: problem.reason,
        ..Problem::new(problem.kind, problem.detail.clone(), request_id.to_string())
    };
    let body = serde_json::to_vec(&body).unwrap_or_default();
    *response.body_mut() = Body::from(body);
    response.headers_mut().remove(header::CONTENT_LENGTH);
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    response
}

/// For unknown paths.
pub(crate) async fn no_such_path() -> ApiProblem {
    ApiProblem::new(ProblemKind::NotFound, "nothing exists at this path")
}

/// For methods that a path does not support. axum adds the header `Allow`.
pub(crate) async fn no_such_method() -> ApiProblem {
    ApiProblem::new(
        ProblemKind::MethodNotAllowed,
        "method not allowed; see the Allow header",
    )
}

pub(crate) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
