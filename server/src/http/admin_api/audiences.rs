//! `/v1/admin/audiences`

use std::sync::Arc;

use assay_protocol::{
    Problem, ProblemKind,
    admin_api::{
        audiences::{Audience, CreateAudience, ReplaceAudience},
        page::Page,
    },
};
use axum::{Json, extract::State, http::StatusCode};
use utoipa_axum::router::OpenApiRouter;

use crate::{
    administration::audiences::{self, AudienceError},
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
        .routes(routes!(find, replace, delete))
}

impl From<AudienceError> for ApiProblem {
    fn from(error: AudienceError) -> Self {
        match error {
            AudienceError::Audience | AudienceError::Token(_) => Self::malformed(error.to_string()),
            AudienceError::Exists => Self::new(ProblemKind::Conflict, error.to_string()),
            AudienceError::Unknown => Self::not_found("audience"),
            AudienceError::Store(error) => error.into(),
        }
    }
}

/// Create an audience whose tokens differ from the usual ones.
#[utoipa::path(
    post, path = "/v1/admin/audiences", tag = "Audiences", security(("api_key" = [])),
    request_body = CreateAudience,
    responses((status = 201, body = Audience), (status = "4XX", body = Problem)),
)]
async fn create(
    caller: Authorized<Admin>,
    State(services): State<Arc<Services>>,
    extract::Json(request): extract::Json<CreateAudience>,
) -> ApiResult<(StatusCode, Json<Audience>)> {
    let audience = audiences::create(&services.store, &caller.origin, request).await?;
    Ok((StatusCode::CREATED, Json(audience)))
}

/// List audiences whose tokens differ from the usual ones.
#[utoipa::path(
    get, path = "/v1/admin/audiences", tag = "Audiences", security(("api_key" = [])), params(PageParameters),
    responses((status = 200, body = Page<Audience>), (status = "4XX", body = Problem)),
)]
async fn list(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    List { page, .. }: List<Unfiltered>,
) -> ApiResult<Json<Page<Audience>>> {
    let found = audiences::list(&services.store, page.after, page.rows()).await?;
    Ok(Json(page.page(found, |audience| audience.id)))
}

/// Read an audience.
#[utoipa::path(
    get, path = "/v1/admin/audiences/{id}", tag = "Audiences", security(("api_key" = [])),
    params(("id" = uuid::Uuid, Path)),
    responses((status = 200, body = Audience), (status = "4XX", body = Problem)),
)]
async fn find(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
) -> ApiResult<Json<Audience>> {
    Ok(Json(audiences::find(&services.store, id).await?))
}

/// Replace the form of an audience's tokens.
#[utoipa::path(
    put, path = "/v1/admin/audiences/{id}", tag = "Audiences", security(("api_key" = [])),
    params(("id" = uuid::Uuid, Path)), request_body = ReplaceAudience,
    responses((status = 200, body = Audience), (status = "4XX", body = Problem)),
)]
async fn replace(
    caller: Authorized<Admin>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
    extract::Json(request): extract::Json<ReplaceAudience>,
) -> ApiResult<Json<Audience>> {
    Ok(Json(
        audiences::replace(&services.store, &caller.origin, id, request).await?,
    ))
}

/// Delete an audience. Its tokens are the usual ones from then on.
#[utoipa::path(
    delete, path = "/v1/admin/audiences/{id}", tag = "Audiences", security(("api_key" = [])),
    params(("id" = uuid::Uuid, Path)),
    responses((status = 204), (status = "4XX", body = Problem)),
)]
async fn delete(caller: Authorized<Admin>, State(services): State<Arc<Services>>, Id(id): Id) -> ApiResult<StatusCode> {
    audiences::delete(&services.store, &caller.origin, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
