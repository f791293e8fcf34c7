//! `/v1/admin/machines/{id}/quarantine`, `release` and `revoke`

use std::sync::Arc;

use assay_protocol::{
    Problem, ProblemKind,
    admin_api::{enrollments::Decide, machines::Machine},
};
use axum::{Json, extract::State};
use utoipa_axum::router::OpenApiRouter;

use crate::{
    http::{
        authentication::{Authorized, Operator},
        extract::{self, Id},
        operation::routes,
        problem::{ApiProblem, ApiResult},
    },
    registry::status_change::{self, StatusChange, StatusChangeError},
    services::Services,
};

impl From<StatusChangeError> for ApiProblem {
    fn from(error: StatusChangeError) -> Self {
        match error {
            StatusChangeError::Reason(_) => Self::malformed(error.to_string()),
            StatusChangeError::Unknown => Self::not_found("machine"),
            StatusChangeError::Status(_) | StatusChangeError::DecidedBefore { .. } => {
                Self::new(ProblemKind::Conflict, error.to_string())
            }
            StatusChangeError::Store(error) => error.into(),
        }
    }
}

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new()
        .routes(routes!(quarantine))
        .routes(routes!(release))
        .routes(routes!(revoke))
}

/// Quarantine a machine.
///
/// After the response, no check-in gives a grant. Repeating it with the same reason changes nothing; another reason is
/// a conflict.
#[utoipa::path(
    post, path = "/v1/admin/machines/{id}/quarantine", tag = "Machines", security(("api_key" = [])),
    params(("id" = Uuid, Path)), request_body = Decide,
    responses((status = 200, body = Machine), (status = "4XX", body = Problem)),
)]
async fn quarantine(
    caller: Authorized<Operator>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
    extract::Json(request): extract::Json<Decide>,
) -> ApiResult<Json<Machine>> {
    let machine =
        status_change::decide(&services, &caller.origin, id, StatusChange::Quarantine, &request.reason).await?;
    Ok(Json(machine))
}

/// Release a machine from quarantine.
///
/// Repeating it with the same reason changes nothing; another reason is a conflict.
#[utoipa::path(
    post, path = "/v1/admin/machines/{id}/release", tag = "Machines", security(("api_key" = [])),
    params(("id" = Uuid, Path)), request_body = Decide,
    responses((status = 200, body = Machine), (status = "4XX", body = Problem)),
)]
async fn release(
    caller: Authorized<Operator>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
    extract::Json(request): extract::Json<Decide>,
) -> ApiResult<Json<Machine>> {
    let machine = status_change::decide(&services, &caller.origin, id, StatusChange::Release, &request.reason).await?;
    Ok(Json(machine))
}

/// Revoke a machine permanently, with its keys and certificates.
///
/// Repeating it with the same reason changes nothing; another reason is a conflict.
#[utoipa::path(
    post, path = "/v1/admin/machines/{id}/revoke", tag = "Machines", security(("api_key" = [])),
    params(("id" = Uuid, Path)), request_body = Decide,
    responses((status = 200, body = Machine), (status = "4XX", body = Problem)),
)]
async fn revoke(
    caller: Authorized<Operator>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
    extract::Json(request): extract::Json<Decide>,
) -> ApiResult<Json<Machine>> {
    let machine = status_change::decide(&services, &caller.origin, id, StatusChange::Revoke, &request.reason).await?;
    Ok(Json(machine))
}
