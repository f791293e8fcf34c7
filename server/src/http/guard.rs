//! What every handler runs in: a time limit, a handler for panics, and the metrics.

use std::panic::AssertUnwindSafe;

use axum::{
    extract::{MatchedPath, Request},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use tokio::time::Instant;

use super::{
    deadline::Deadline,
    problem::{self, ApiProblem},
};
use crate::telemetry::{Metrics, metrics::UNMATCHED};

/// Aborts a request at its deadline, and turns a panic into an error response.
pub(super) async fn time_limit(mut request: Request, next: impl AsyncFnOnce(Request) -> Response) -> Response {
    let deadline = Deadline::new();
    request.extensions_mut().insert(deadline.clone());
    tokio::select! {
        finished = AssertUnwindSafe(next(request)).catch_unwind() => match finished {
            Ok(response) => response,
            Err(_panic) => ApiProblem::internal(&Panicked).into_response(),
        },
        () = deadline.passed() => ApiProblem::unavailable().into_response(),
    }
}

/// Counts and logs every response.
pub(super) async fn observe(
    metrics: &Metrics,
    request: Request,
    next: impl AsyncFnOnce(Request) -> Response,
) -> Response {
    let started = Instant::now();
    let method = request.method().clone();
    let endpoint = request.extensions().get::<MatchedPath>().cloned();
    let response = next(request).await;
    let status = response.status();
    let endpoint = endpoint.as_ref().map_or(UNMATCHED, MatchedPath::as_str);
    metrics.request_answered(endpoint, &method, status.as_u16(), started.elapsed());
    let problem = problem::kind_of(&response);
    if let Some(kind) = problem {
        metrics.problem_answered(kind);
    }
    let milliseconds = started.elapsed().as_millis();
    let problem = problem.map(assay_protocol::ProblemKind::slug);
    if status.is_server_error() {
        tracing::warn!(status = status.as_u16(), problem, milliseconds, "failed");
    } else if status.is_client_error() {
        tracing::info!(status = status.as_u16(), problem, milliseconds, "refused");
    } else {
        tracing::debug!(status = status.as_u16(), milliseconds, "answered");
    }
    response
}

#[derive(Debug, thiserror::Error)]
#[error("a handler panicked; the log has the panic above")]
struct Panicked;
