//! What every handler runs in: a time limit, a handler for panics, and the metrics.

use std::panic::AssertUnwindSafe;

use axum::{
    extract::{MatchedPath, Request},
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use tokio::time::Instant;

use super::{
    acme_api::RefusedByAcme,
    deadline::Deadline,
    problem::{self, ApiProblem},
};
use crate::{
    changes::{Identity, RequestSource},
    telemetry::{Metrics, metrics::UNMATCHED},
};

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

/// Counts and logs every response. The log of a refusal says who was refused what.
pub(super) async fn observe(
    metrics: &Metrics,
    source: &RequestSource,
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
    if let Some(kind) = problem::kind_of(&response) {
        metrics.problem_answered(kind);
    }
    let milliseconds = started.elapsed().as_millis();
    if status.is_client_error() || status.is_server_error() {
        log_refusal(&response, source, milliseconds);
    } else {
        tracing::debug!(status = status.as_u16(), milliseconds, "answered");
    }
    response
}

fn log_refusal(response: &Response, source: &RequestSource, milliseconds: u128) {
    let status = response.status().as_u16();
    let by_acme = response.extensions().get::<RefusedByAcme>();
    let (problem, detail) = match (response.extensions().get::<ApiProblem>(), by_acme) {
        (Some(problem), _) => (Some(problem.kind().slug()), Some(problem.detail())),
        (None, Some(refused)) => (Some(refused.kind), Some(refused.detail.as_str())),
        (None, None) => (None, None),
    };
    let address = source.address.map(tracing::field::display);
    let (mut api_key, mut machine, mut acme_account) = (None, None, None);
    match source.identity() {
        Some(Identity::ApiKey(id)) => api_key = Some(tracing::field::display(id)),
        Some(Identity::Machine(id)) => machine = Some(tracing::field::display(id)),
        Some(Identity::AcmeAccount(id)) => acme_account = Some(tracing::field::display(id)),
        None => {}
    }
    if response.status().is_server_error() {
        tracing::warn!(
            status,
            address,
            api_key,
            machine,
            acme_account,
            problem,
            detail,
            milliseconds,
            "failed"
        );
    } else {
        tracing::info!(
            status,
            address,
            api_key,
            machine,
            acme_account,
            problem,
            detail,
            milliseconds,
            "refused"
        );
    }
}

#[derive(Debug, thiserror::Error)]
#[error("a handler panicked; the log has the panic above")]
struct Panicked;
