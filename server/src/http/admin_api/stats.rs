//! `/v1/admin/stats`

use std::sync::Arc;

use assay_protocol::{Problem, admin_api::stats::Stats};
use axum::{Json, extract::State};
use utoipa_axum::router::OpenApiRouter;

use crate::{
    administration::stats,
    http::{
        authentication::{Authorized, Viewer},
        deadline::Deadline,
        operation::routes,
        problem::ApiResult,
    },
    services::Services,
};

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new().routes(routes!(read))
}

/// Read statistics about the fleet.
#[utoipa::path(
    get, path = "/v1/admin/stats", tag = "Stats", security(("api_key" = [])),
    responses((status = 200, body = Stats), (status = "4XX", body = Problem)),
)]
async fn read(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    deadline: Option<Deadline>,
) -> ApiResult<Json<Stats>> {
    if let Some(deadline) = deadline {
        // A count that is already running, and then this request's own.
        deadline.allow(2 * stats::LONGEST_COUNT);
    }
    Ok(Json(stats::read(&services).await?))
}
