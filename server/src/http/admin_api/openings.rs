//! `/v1/admin/machines/{id}/open`

use std::sync::Arc;

use assay_protocol::{
    Problem, ProblemKind,
    admin_api::machines::{OpenMachine, Opening},
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
    registry::opening::{self, OpeningError, Request},
    services::Services,
};

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new().routes(routes!(open))
}

impl From<OpeningError> for ApiProblem {
    fn from(error: OpeningError) -> Self {
        match error {
            OpeningError::Reason(_) | OpeningError::Hours => Self::malformed(error.to_string()),
            OpeningError::Unknown => Self::not_found("machine"),
            OpeningError::Status(_)
            | OpeningError::Missing(_)
            | OpeningError::OpenAlready
            | OpeningError::Taken
            | OpeningError::Contested => Self::new(ProblemKind::Conflict, error.to_string()),
            OpeningError::Store(error) => error.into(),
        }
    }
}

/// Open a machine's record for a new key of the same hardware.
///
/// For a Mac that was wiped and has no token. Until the opening ends, a new key with the recorded serial number and
/// hardware UUID takes the record over as `asserted`, if no other key waits. A key that comes later waits, and the first
/// one then gets no grants until an administrator approves one of the two by its thumbprint. A check-in by the recorded key
/// ends the opening. Repeating the call with the same hours and reason changes nothing; others are a conflict.
#[utoipa::path(
    post, path = "/v1/admin/machines/{id}/open", tag = "Machines", security(("api_key" = [])),
    params(("id" = Uuid, Path)), request_body = Option<OpenMachine>,
    responses((status = 200, body = Opening), (status = "4XX", body = Problem)),
)]
async fn open(
    caller: Authorized<Operator>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
    request: Option<extract::Json<OpenMachine>>,
) -> ApiResult<Json<Opening>> {
    let request = Request::parse(&request.map(|extract::Json(request)| request).unwrap_or_default())?;
    Ok(Json(opening::open(&services, &caller.origin, id, &request).await?))
}
