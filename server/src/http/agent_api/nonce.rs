//! `GET` and `HEAD /v1/nonce`

use std::sync::Arc;

use assay_protocol::Problem;
use axum::http::StatusCode;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::services::Services;

pub(in crate::http) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new().routes(routes!(nonce))
}

/// Read a fresh nonce from the header `Replay-Nonce`.
///
/// It is valid for 300 s, once for each machine, on every replica.
#[utoipa::path(
    get, path = "/v1/nonce", tag = "Agents",
    responses(
        (status = 204, headers(("Replay-Nonce" = String))),
        (status = "4XX", body = Problem),
    ),
)]
async fn nonce() -> StatusCode {
    StatusCode::NO_CONTENT
}
