//! `/v1/admin/grants`

use std::sync::Arc;

use assay_protocol::{
    Problem, ProblemKind,
    admin_api::{
        grants::{Evaluate, EvaluatedGrants, Grant, GrantRequest},
        page::Page,
    },
};
use axum::{Json, extract::State, http::StatusCode};
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;
use uuid::Uuid;

use crate::{
    administration::grants::{self, GrantError},
    http::{
        authentication::{Admin, Authorized, Viewer},
        extract::{self, Id},
        operation::routes,
        page::{List, PageParameters},
        problem::{ApiProblem, ApiResult},
    },
    services::Services,
    store::grants::GrantFilter,
};

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(evaluate))
        .routes(routes!(find, replace, delete))
        .routes(routes!(of_machine))
}

impl From<GrantError> for ApiProblem {
    fn from(error: GrantError) -> Self {
        match error {
            GrantError::Name
            | GrantError::Description
            | GrantError::SelectorEmpty
            | GrantError::SelectorMachineIds
            | GrantError::SelectorLabelsEmpty
            | GrantError::SelectorLabels(_)
            | GrantError::SelectorAll
            | GrantError::OsVersion
            | GrantError::AttestationAge
            | GrantError::Expired
            | GrantError::End => Self::malformed(error.to_string()),
            GrantError::NameTaken(_) | GrantError::Equal(_) => Self::new(ProblemKind::Conflict, error.to_string()),
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
    request_body = GrantRequest,
    responses((status = 201, body = Grant), (status = "4XX", body = Problem)),
)]
async fn create(
    caller: Authorized<Admin>,
    State(services): State<Arc<Services>>,
    extract::Json(request): extract::Json<GrantRequest>,
) -> ApiResult<(StatusCode, Json<Grant>)> {
    let grant = grants::create(&services.store, &caller.origin, request).await?;
    Ok((StatusCode::CREATED, Json(grant)))
}

/// Which grants to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct GrantParameters {
    /// The name of the grant.
    name: Option<String>,
    /// The permission that is granted.
    permission_id: Option<Uuid>,
    /// The relying party of the permission.
    audience: Option<String>,
}

/// List grants, including expired ones.
#[utoipa::path(
    get, path = "/v1/admin/grants", tag = "Grants", security(("api_key" = [])),
    params(GrantParameters, PageParameters),
    responses((status = 200, body = Page<Grant>), (status = "4XX", body = Problem)),
)]
async fn list(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    List { filter, page }: List<GrantParameters>,
) -> ApiResult<Json<Page<Grant>>> {
    let filter = GrantFilter {
        name: filter.name,
        permission_id: filter.permission_id,
        audience: filter.audience,
    };
    let found = grants::list(&services.store, &filter, page.after, page.rows()).await?;
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

/// Replace a grant. It keeps its id and its history.
///
/// A request without `conditions` or `expires_at` removes them. Without `name`, the grant keeps its name.
#[utoipa::path(
    put, path = "/v1/admin/grants/{id}", tag = "Grants", security(("api_key" = [])),
    params(("id" = uuid::Uuid, Path)), request_body = GrantRequest,
    responses((status = 200, body = Grant), (status = "4XX", body = Problem)),
)]
async fn replace(
    caller: Authorized<Admin>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
    extract::Json(request): extract::Json<GrantRequest>,
) -> ApiResult<Json<Grant>> {
    Ok(Json(
        grants::replace(&services.store, &caller.origin, id, request).await?,
    ))
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
