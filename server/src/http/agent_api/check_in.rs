//! `POST /v1/check-in`

use std::sync::Arc;

use assay_protocol::{
    Problem,
    agent_api::{CheckInRequest, CheckedIn},
};
use axum::{Extension, Json, extract::State};
use utoipa_axum::{router::OpenApiRouter, routes};

use super::presented;
use crate::{
    changes::RequestSource,
    check_in,
    http::{
        extract,
        problem::{ApiResult, NonceAfter},
    },
    machines::client_certificate::ClientCertificate,
    rate_limits::OverLimit,
    services::Services,
};

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new().routes(routes!(check_in))
}

/// Check in with fresh evidence.
///
/// The response contains the current grants, and is sent after the check-in is durable.
#[utoipa::path(
    post, path = "/v1/check-in", tag = "Agents", request_body = CheckInRequest,
    responses((status = 200, body = CheckedIn), (status = "4XX", body = Problem), (status = "5XX", body = Problem)),
)]
async fn check_in(
    State(services): State<Arc<Services>>,
    source: RequestSource,
    over_limit: Option<Extension<OverLimit>>,
    certificate: Option<Extension<Arc<ClientCertificate>>>,
    extract::Json(request): extract::Json<CheckInRequest>,
) -> ApiResult<(Extension<NonceAfter>, Json<CheckedIn>)> {
    // Boxed: otherwise each layer would copy several kilobytes instead of a pointer.
    let answer = Box::pin(check_in::check_in(
        &services,
        &source,
        over_limit.as_deref(),
        presented(&certificate),
        &request,
    ))
    .await?;
    Ok((Extension(NonceAfter(answer.nonce_used)), Json(answer.checked_in)))
}
