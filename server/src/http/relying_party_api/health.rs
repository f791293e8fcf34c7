//! `/healthz` and `/readyz`, for supervisors and load balancers.

use std::sync::Arc;

use assay_protocol::Problem;
use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{
    http::problem::{ApiProblem, ApiResult},
    services::Services,
};

pub(in crate::http) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new().routes(routes!(live)).routes(routes!(ready))
}

#[derive(Serialize, ToSchema)]
struct Health {
    status: &'static str,
}

/// Whether the process responds.
///
/// This does not depend on the database, because a restart of the server would not repair it.
#[utoipa::path(get, path = "/healthz", tag = "Health", responses((status = 200, body = Health)))]
async fn live() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether the server can handle requests now: the database responds and takes writes.
///
/// The server asks the database once a second at most, whatever the number of calls.
#[utoipa::path(
    get, path = "/readyz", tag = "Health",
    responses((status = 200, body = Health), (status = 503, body = Problem)),
)]
async fn ready(State(services): State<Arc<Services>>) -> ApiResult<Json<Health>> {
    match services.readiness.is_ready(&services.store).await {
        true => Ok(Json(Health { status: "ok" })),
        false => Err(ApiProblem::unavailable()),
    }
}
