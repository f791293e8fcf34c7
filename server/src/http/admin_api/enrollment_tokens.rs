//! `/v1/admin/enrollment-tokens`

use std::sync::Arc;

use assay_protocol::{
    Problem,
    admin_api::{
        enrollment_tokens::{CreateEnrollmentToken, CreatedEnrollmentToken, EnrollmentToken},
        page::Page,
    },
};
use axum::{Json, extract::State, http::StatusCode};
use secrecy::ExposeSecret;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    administration::enrollment_tokens::{self, EnrollmentTokenError},
    http::{
        authentication::{Authorized, Operator, Viewer},
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
        .routes(routes!(find, revoke))
}

impl From<EnrollmentTokenError> for ApiProblem {
    fn from(error: EnrollmentTokenError) -> Self {
        match error {
            EnrollmentTokenError::Description
            | EnrollmentTokenError::Life
            | EnrollmentTokenError::MaxUses
            | EnrollmentTokenError::SerialNumberCount
            | EnrollmentTokenError::SerialNumberEmpty
            | EnrollmentTokenError::SerialNumber(_)
            | EnrollmentTokenError::SerialNumberRepeated(_)
            | EnrollmentTokenError::Labels(_) => Self::malformed(error.to_string()),
            EnrollmentTokenError::Unknown => Self::not_found("enrollment token"),
            EnrollmentTokenError::Store(error) => error.into(),
        }
    }
}

/// Create an enrollment token.
///
/// Its secret is shown only once.
#[utoipa::path(
    post, path = "/v1/admin/enrollment-tokens", tag = "Enrollment tokens", security(("api_key" = [])),
    request_body = CreateEnrollmentToken,
    responses((status = 201, body = CreatedEnrollmentToken), (status = "4XX", body = Problem)),
)]
async fn create(
    caller: Authorized<Operator>,
    State(services): State<Arc<Services>>,
    extract::Json(request): extract::Json<CreateEnrollmentToken>,
) -> ApiResult<(StatusCode, Json<CreatedEnrollmentToken>)> {
    let (enrollment_token, secret) = enrollment_tokens::create(&services.store, &caller.origin, request).await?;
    let token = secret.expose_secret().to_owned();
    let external_account = enrollment_tokens::external_account(&services, enrollment_token.id);
    Ok((
        StatusCode::CREATED,
        Json(CreatedEnrollmentToken {
            enrollment_token,
            token,
            external_account,
        }),
    ))
}

/// List enrollment tokens, including expired, revoked and used ones.
#[utoipa::path(
    get, path = "/v1/admin/enrollment-tokens", tag = "Enrollment tokens", security(("api_key" = [])),
    params(PageParameters),
    responses((status = 200, body = Page<EnrollmentToken>), (status = "4XX", body = Problem)),
)]
async fn list(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    List { page, .. }: List<Unfiltered>,
) -> ApiResult<Json<Page<EnrollmentToken>>> {
    let tokens = enrollment_tokens::list(&services.store, page.after, page.rows()).await?;
    Ok(Json(page.page(tokens, |token| token.id)))
}

/// Read an enrollment token.
#[utoipa::path(
    get, path = "/v1/admin/enrollment-tokens/{id}", tag = "Enrollment tokens", security(("api_key" = [])),
    params(("id" = uuid::Uuid, Path)),
    responses((status = 200, body = EnrollmentToken), (status = "4XX", body = Problem)),
)]
async fn find(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
) -> ApiResult<Json<EnrollmentToken>> {
    Ok(Json(enrollment_tokens::find(&services.store, id).await?))
}

/// Revoke an enrollment token.
///
/// Repeating it changes nothing.
#[utoipa::path(
    delete, path = "/v1/admin/enrollment-tokens/{id}", tag = "Enrollment tokens", security(("api_key" = [])),
    params(("id" = uuid::Uuid, Path)),
    responses((status = 204), (status = "4XX", body = Problem)),
)]
async fn revoke(
    caller: Authorized<Operator>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
) -> ApiResult<StatusCode> {
    enrollment_tokens::revoke(&services.store, &caller.origin, id).await?;
    Ok(StatusCode::NO_CONTENT)
}
