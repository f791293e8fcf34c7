//! The id of a request. It is in the response, in every log line of the request, and in the audit entries that it
//! causes.

use std::fmt;

use axum::{
    extract::{MatchedPath, Request},
    http::HeaderValue,
    response::Response,
};
use tracing::Instrument;
use uuid::Uuid;

use super::problem::X_REQUEST_ID;
use crate::{
    clock::{self, Clock},
    telemetry::{logging, metrics::UNMATCHED},
};

/// Only the server generates it. A caller's own id could imitate that of another request in the audit log.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RequestId(Uuid);

impl fmt::Display for RequestId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.hyphenated().fmt(formatter)
    }
}

/// Gives each request an id, and a log span that contains it.
pub(super) async fn assign(
    clock: &dyn Clock,
    request: Request,
    next: impl AsyncFnOnce(Request, RequestId) -> Response,
) -> Response {
    let request_id = RequestId(clock::new_id(clock));
    let endpoint = request
        .extensions()
        .get::<MatchedPath>()
        .map_or(UNMATCHED, MatchedPath::as_str);
    let span = logging::request_span(request_id.0, request.method(), endpoint);
    let mut response = next(request, request_id).instrument(span).await;
    if let Ok(value) = HeaderValue::from_str(&request_id.to_string()) {
        response.headers_mut().insert(X_REQUEST_ID, value);
    }
    response
}
