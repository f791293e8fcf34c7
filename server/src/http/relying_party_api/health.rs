//! `/healthz` and `/readyz`, for whatever supervises the server and balances its load.

use std::sync::Arc;

use assay_protocol::Problem;
use axum::{Json, extract::State};
use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::{http::problem::ApiResult, services::Services};

pub(in crate::http) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new().routes(routes!(live)).routes(routes!(ready))
}

#[derive(Serialize, ToSchema)]
struct Health {
    status: &'static str,
}

/// Whether the process answers. Says nothing of the database: restarting the server would not mend that.
#[utoipa::path(get, path = "/healthz", tag = "Health", responses((status = 200, body = Health)))]
async fn live() -> Json<Health> {
    Json(Health { status: "ok" })
}

/// Whether requests can be served now: the database answers.
#[utoipa::path(
    get, path = "/readyz", tag = "Health",
    responses((status = 200, body = Health), (status = 503, body = Problem)),
)]
async fn ready(State(services): State<Arc<Services>>) -> ApiResult<Json<Health>> {
    services.store.ping().await?;
    Ok(Json(Health { status: "ok" }))
}
