//! `/v1/admin/permissions`

use std::sync::Arc;

use assay_protocol::{
    Problem, ProblemKind,
    admin_api::{
        page::Page,
        permissions::{CreatePermission, Permission, ReplacePermission},
    },
};
use axum::{Json, extract::State, http::StatusCode};
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    administration::permissions::{self, PermissionError},
    http::{
        authentication::{Admin, Authorized, Viewer},
        extract::{self, Id, Parameters},
        operation::routes,
        page::{List, PageParameters},
        problem::{ApiProblem, ApiResult},
    },
    services::Services,
    store::permissions::PermissionFilter,
};

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(find, replace, delete))
}

impl From<PermissionError> for ApiProblem {
    fn from(error: PermissionError) -> Self {
        match error {
            PermissionError::Audience | PermissionError::Name | PermissionError::Description => {
                Self::malformed(error.to_string())
            }
            PermissionError::Exists | PermissionError::HasGrants { .. } => {
                Self::new(ProblemKind::Conflict, error.to_string())
            }
            PermissionError::Unknown => Self::not_found("permission"),
            PermissionError::Store(error) => error.into(),
        }
    }
}

/// Create a permission.
#[utoipa::path(
    post, path = "/v1/admin/permissions", tag = "Permissions", security(("api_key" = [])),
    request_body = CreatePermission,
    responses((status = 201, body = Permission), (status = "4XX", body = Problem)),
)]
async fn create(
    caller: Authorized<Admin>,
    State(services): State<Arc<Services>>,
    extract::Json(request): extract::Json<CreatePermission>,
) -> ApiResult<(StatusCode, Json<Permission>)> {
    let permission = permissions::create(&services.store, &caller.origin, request).await?;
    Ok((StatusCode::CREATED, Json(permission)))
}

/// Which permissions to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct PermissionParameters {
    /// The relying party.
    audience: Option<String>,
    /// The name at the relying party.
    name: Option<String>,
}

/// How to delete a permission.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct DeleteParameters {
    /// Whether its grants are deleted with it. Without this, a permission with grants is not deleted.
    #[serde(default)]
    cascade: bool,
}

/// List permissions.
#[utoipa::path(
    get, path = "/v1/admin/permissions", tag = "Permissions", security(("api_key" = [])),
    params(PermissionParameters, PageParameters),
    responses((status = 200, body = Page<Permission>), (status = "4XX", body = Problem)),
)]
async fn list(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    List { filter, page }: List<PermissionParameters>,
) -> ApiResult<Json<Page<Permission>>> {
    let PermissionParameters { audience, name } = filter;
    let filter = PermissionFilter { audience, name };
    let found = permissions::list(&services.store, &filter, page.after, page.rows()).await?;
    Ok(Json(page.page(found, |permission| permission.id)))
}

/// Read a permission.
#[utoipa::path(
    get, path = "/v1/admin/permissions/{id}", tag = "Permissions", security(("api_key" = [])),
    params(("id" = uuid::Uuid, Path)),
    responses((status = 200, body = Permission), (status = "4XX", body = Problem)),
)]
async fn find(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
) -> ApiResult<Json<Permission>> {
    Ok(Json(permissions::find(&services.store, id).await?))
}

/// Replace the description of a permission.
#[utoipa::path(
    put, path = "/v1/admin/permissions/{id}", tag = "Permissions", security(("api_key" = [])),
    params(("id" = uuid::Uuid, Path)), request_body = ReplacePermission,
    responses((status = 200, body = Permission), (status = "4XX", body = Problem)),
)]
async fn replace(
    caller: Authorized<Admin>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
    extract::Json(request): extract::Json<ReplacePermission>,
) -> ApiResult<Json<Permission>> {
    Ok(Json(
        permissions::replace(&services.store, &caller.origin, id, request).await?,
    ))
}

/// Delete a permission; with `cascade`, its grants with it.
#[utoipa::path(
    delete, path = "/v1/admin/permissions/{id}", tag = "Permissions", security(("api_key" = [])),
    params(("id" = uuid::Uuid, Path), DeleteParameters),
    responses((status = 204), (status = "4XX", body = Problem)),
)]
async fn delete(
    caller: Authorized<Admin>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
    Parameters(DeleteParameters { cascade }): Parameters<DeleteParameters>,
) -> ApiResult<StatusCode> {
    permissions::delete(&services.store, &caller.origin, id, cascade).await?;
    Ok(StatusCode::NO_CONTENT)
}
