//! `/v1/admin/grants`

use std::sync::Arc;

use assay_protocol::{
    Problem,
    admin_api::{
        grants::{CreateGrant, Evaluate, EvaluatedGrants, Grant},
        page::Page,
    },
};
use axum::{Json, extract::State, http::StatusCode};
use utoipa_axum::router::OpenApiRouter;

use crate::{
    administration::grants::{self, GrantError},
    http::{
        authentication::{Admin, Authorized, Viewer},
        extract::{self, Id},
        operation::routes,
        page::{List, PageParameters, Unfiltered},
        problem::{ApiProblem, ApiResult},
    },
    services::Services,
};

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(evaluate))
        .routes(routes!(find, delete))
        .routes(routes!(of_machine))
}

impl From<GrantError> for ApiProblem {
    fn from(error: GrantError) -> Self {
        match error {
            GrantError::SelectorEmpty
            | GrantError::SelectorMachineIds
            | GrantError::SelectorLabelsEmpty
            | GrantError::SelectorLabels(_)
            | GrantError::SelectorAll
            | GrantError::OsVersion
            | GrantError::AttestationAge
            | GrantError::Expired
            | GrantError::End => Self::malformed(error.to_string()),
            GrantError::UnknownPermission => Self::not_found("permission"),
            GrantError::Unknown => Self::not_found("grant"),
            GrantError::UnknownMachine => Self::not_found("machine"),
            GrantError::Store(error) => error.into(),
        }
    }
}

/// Create a grant.
#[utoipa::path(
    post, path = "/v1/admin/grants", tag = "Grants", security(("api_key" = [])),
    request_body = CreateGrant,
    responses((status = 201, body = Grant), (status = "4XX", body = Problem)),
)]
async fn create(
    caller: Authorized<Admin>,
    State(services): State<Arc<Services>>,
    extract::Json(request): extract::Json<CreateGrant>,
) -> ApiResult<(StatusCode, Json<Grant>)> {
    let grant = grants::create(&services.store, &caller.origin, request).await?;
    Ok((StatusCode::CREATED, Json(grant)))
}

/// List grants, including expired ones.
#[utoipa::path(
    get, path = "/v1/admin/grants", tag = "Grants", security(("api_key" = [])), params(PageParameters),
    responses((status = 200, body = Page<Grant>), (status = "4XX", body = Problem)),
)]
async fn list(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    List { page, .. }: List<Unfiltered>,
) -> ApiResult<Json<Page<Grant>>> {
    let found = grants::list(&services.store, page.after, page.rows()).await?;
    Ok(Json(page.page(found, |grant| grant.id)))
}

/// Read a grant.
#[utoipa::path(
    get, path = "/v1/admin/grants/{id}", tag = "Grants", security(("api_key" = [])),
    params(("id" = uuid::Uuid, Path)),
    responses((status = 200, body = Grant), (status = "4XX", body = Problem)),
)]
async fn find(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
) -> ApiResult<Json<Grant>> {
    Ok(Json(grants::find(&services.store, id).await?))
}

/// Delete a grant.
#[utoipa::path(
    delete, path = "/v1/admin/grants/{id}", tag = "Grants", security(("api_key" = [])),
    params(("id" = uuid::Uuid, Path)),
    responses((status = 204), (status = "4XX", body = Problem)),
)]
async fn delete(caller: Authorized<Admin>, State(services): State<Arc<Services>>, Id(id): Id) -> ApiResult<StatusCode> {
    grants::delete(&services.store, &caller.origin, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Read which permissions a check-in of a machine would give now, and why.
#[utoipa::path(
    post, path = "/v1/admin/grants/evaluate", tag = "Grants", security(("api_key" = [])),
    request_body = Evaluate,
    responses((status = 200, body = EvaluatedGrants), (status = "4XX", body = Problem)),
)]
async fn evaluate(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    extract::Json(request): extract::Json<Evaluate>,
) -> ApiResult<Json<EvaluatedGrants>> {
    Ok(Json(grants::evaluate_for(&services, request.machine_id).await?))
}

/// Read which permissions a check-in of this machine would give now, and why.
#[utoipa::path(
    get, path = "/v1/admin/machines/{id}/grants", tag = "Grants", security(("api_key" = [])),
    params(("id" = uuid::Uuid, Path)),
    responses((status = 200, body = EvaluatedGrants), (status = "4XX", body = Problem)),
)]
async fn of_machine(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
) -> ApiResult<Json<EvaluatedGrants>> {
    Ok(Json(grants::evaluate_for(&services, id).await?))
}
