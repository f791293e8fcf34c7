//! `/v1/admin/permissions`

use std::sync::Arc;

use assay_protocol::{
    Problem, ProblemKind,
    admin_api::{
        page::Page,
        permissions::{CreatePermission, Permission},
    },
};
use axum::{Json, extract::State, http::StatusCode};
use utoipa_axum::router::OpenApiRouter;

use crate::{
    administration::permissions::{self, PermissionError},
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
        .routes(routes!(find, delete))
}

impl From<PermissionError> for ApiProblem {
    fn from(error: PermissionError) -> Self {
        match error {
            PermissionError::Audience | PermissionError::Name | PermissionError::Description => {
                Self::malformed(error.to_string())
            }
            PermissionError::Exists => Self::new(ProblemKind::Conflict, error.to_string()),
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

/// List permissions.
#[utoipa::path(
    get, path = "/v1/admin/permissions", tag = "Permissions", security(("api_key" = [])), params(PageParameters),
    responses((status = 200, body = Page<Permission>), (status = "4XX", body = Problem)),
)]
async fn list(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    List { page, .. }: List<Unfiltered>,
) -> ApiResult<Json<Page<Permission>>> {
    let found = permissions::list(&services.store, page.after, page.rows()).await?;
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

/// Delete a permission and its grants.
#[utoipa::path(
    delete, path = "/v1/admin/permissions/{id}", tag = "Permissions", security(("api_key" = [])),
    params(("id" = uuid::Uuid, Path)),
    responses((status = 204), (status = "4XX", body = Problem)),
)]
async fn delete(caller: Authorized<Admin>, State(services): State<Arc<Services>>, Id(id): Id) -> ApiResult<StatusCode> {
    permissions::delete(&services.store, &caller.origin, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
