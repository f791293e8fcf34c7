//! `/v1/admin/api-keys`

use std::sync::Arc;

use assay_protocol::{
    Problem, ProblemKind,
    admin_api::{
        api_keys::{ApiKey, CreateApiKey, CreatedApiKey},
        page::Page,
    },
};
use axum::{Json, extract::State, http::StatusCode};
use secrecy::ExposeSecret;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    administration::api_keys::{self, ApiKeyError},
    http::{
        authentication::{Admin, Authorized, KeyHolder, Viewer},
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
        .routes(routes!(revoke))
        .routes(routes!(read_self))
}

impl From<ApiKeyError> for ApiProblem {
    fn from(error: ApiKeyError) -> Self {
        match error {
            ApiKeyError::Name | ApiKeyError::Life | ApiKeyError::Network { .. } | ApiKeyError::Networks => {
                Self::malformed(error.to_string())
            }
            ApiKeyError::NameTaken { .. } | ApiKeyError::LastAdmin | ApiKeyError::EndsBefore { .. } => {
                Self::new(ProblemKind::Conflict, error.to_string())
            }
            ApiKeyError::Unknown => Self::not_found("API key"),
            ApiKeyError::Store(error) => error.into(),
        }
    }
}

/// Create an API key.
///
/// Its secret is shown only once. The name must differ from the names of all valid keys. Without
/// `expires_in_seconds`, the key expires after a year.
#[utoipa::path(
    post, path = "/v1/admin/api-keys", tag = "API keys", security(("api_key" = [])),
    request_body = CreateApiKey,
    responses((status = 201, body = CreatedApiKey), (status = "4XX", body = Problem)),
)]
async fn create(
    caller: Authorized<Admin>,
    State(services): State<Arc<Services>>,
    extract::Json(request): extract::Json<CreateApiKey>,
) -> ApiResult<(StatusCode, Json<CreatedApiKey>)> {
    let (api_key, secret) = api_keys::create(&services.store, &caller.origin, &request).await?;
    let key = secret.expose_secret().to_owned();
    Ok((StatusCode::CREATED, Json(CreatedApiKey { api_key, key })))
}

/// List API keys, including expired and revoked ones.
#[utoipa::path(
    get, path = "/v1/admin/api-keys", tag = "API keys", security(("api_key" = [])), params(PageParameters),
    responses((status = 200, body = Page<ApiKey>), (status = "4XX", body = Problem)),
)]
async fn list(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    List { page, .. }: List<Unfiltered>,
) -> ApiResult<Json<Page<ApiKey>>> {
    let keys = api_keys::list(&services.store, page.after, page.rows()).await?;
    Ok(Json(page.page(keys, |key| key.id)))
}

/// Revoke an API key.
///
/// The last valid key of the role `admin` cannot be revoked.
#[utoipa::path(
    delete, path = "/v1/admin/api-keys/{id}", tag = "API keys", security(("api_key" = [])),
    params(("id" = uuid::Uuid, Path)),
    responses((status = 204), (status = "4XX", body = Problem)),
)]
async fn revoke(caller: Authorized<Admin>, State(services): State<Arc<Services>>, Id(id): Id) -> ApiResult<StatusCode> {
    api_keys::revoke(&services.store, &caller.origin, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Read the API key of this request.
#[utoipa::path(
    get, path = "/v1/admin/self", tag = "API keys", security(("api_key" = [])),
    responses((status = 200, body = ApiKey), (status = "4XX", body = Problem)),
)]
async fn read_self(caller: Authorized<KeyHolder>, State(services): State<Arc<Services>>) -> ApiResult<Json<ApiKey>> {
    Ok(Json(api_keys::find(&services.store, caller.api_key).await?))
}
