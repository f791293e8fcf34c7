//! `/v1/admin/background-work`

use std::sync::Arc;

use assay_protocol::{
    Problem,
    admin_api::{background_work::BackgroundWork, page::Page},
};
use axum::{Json, extract::State};
use utoipa_axum::router::OpenApiRouter;

use crate::{
    http::{
        authentication::{Authorized, Viewer},
        operation::routes,
    },
    services::Services,
};

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new().routes(routes!(list))
}

/// List the periodic work of the replica that answers, with the last run of each.
///
/// Behind a load balancer, each call may show another replica. The metrics show every replica.
#[utoipa::path(
    get, path = "/v1/admin/background-work", tag = "Background work", security(("api_key" = [])),
    responses((status = 200, body = Page<BackgroundWork>), (status = "4XX", body = Problem)),
)]
async fn list(_caller: Authorized<Viewer>, State(services): State<Arc<Services>>) -> Json<Page<BackgroundWork>> {
    Json(Page {
        items: services.background_work.list(),
        next_cursor: None,
    })
}
