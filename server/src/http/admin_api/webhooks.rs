//! `/v1/admin/webhooks`

use std::sync::Arc;

use assay_protocol::{
    Problem, ProblemKind,
    admin_api::{
        api_keys::Role,
        page::Page,
        webhooks::{CreateWebhook, CreatedWebhook, DeliveryStatus, Webhook, WebhookDelivery, WebhookTest},
    },
};
use axum::{Json, extract::State, http::StatusCode};
use secrecy::ExposeSecret;
use serde::Deserialize;
use utoipa_axum::router::OpenApiRouter;

use crate::{
    administration::webhooks::{self, WebhookError},
    http::{
        authentication::{Admin, Authorized, Viewer},
        extract::{self, Id},
        operation::routes,
        page::{List, PageParameters, Unfiltered},
        problem::{ApiProblem, ApiResult},
    },
    services::Services,
    webhooks::masked,
};

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(find, delete))
        .routes(routes!(test))
        .routes(routes!(deliveries))
}

impl From<WebhookError> for ApiProblem {
    fn from(error: WebhookError) -> Self {
        match error {
            WebhookError::Url(_) | WebhookError::Description | WebhookError::NoKinds | WebhookError::Kind { .. } => {
                Self::malformed(error.to_string())
            }
            WebhookError::TooMany | WebhookError::Disabled => Self::new(ProblemKind::Conflict, error.to_string()),
            WebhookError::Unknown => Self::not_found("webhook"),
            WebhookError::Secret(_) => Self::internal(&error),
            WebhookError::Store(error) => error.into(),
        }
    }
}

/// Which deliveries to list.
#[derive(Debug, Default, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
struct DeliveryParameters {
    /// Their status.
    #[param(inline)]
    status: Option<DeliveryStatus>,
}

/// Create a webhook.
///
/// Its secret is shown only once.
#[utoipa::path(
    post, path = "/v1/admin/webhooks", tag = "Webhooks", security(("api_key" = [])), request_body = CreateWebhook,
    responses((status = 201, body = CreatedWebhook), (status = "4XX", body = Problem)),
)]
async fn create(
    caller: Authorized<Admin>,
    State(services): State<Arc<Services>>,
    extract::Json(request): extract::Json<CreateWebhook>,
) -> ApiResult<(StatusCode, Json<CreatedWebhook>)> {
    let (webhook, secret) =
        webhooks::create(&services.store, &services.webhook_secrets, &caller.origin, request).await?;
    let secret = secret.expose_secret().to_owned();
    Ok((StatusCode::CREATED, Json(CreatedWebhook { webhook, secret })))
}

/// List webhooks, including disabled ones.
///
/// Only the role `admin` sees more than the host of a URL.
#[utoipa::path(
    get, path = "/v1/admin/webhooks", tag = "Webhooks", security(("api_key" = [])), params(PageParameters),
    responses((status = 200, body = Page<Webhook>), (status = "4XX", body = Problem)),
)]
async fn list(
    caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    List { page, .. }: List<Unfiltered>,
) -> ApiResult<Json<Page<Webhook>>> {
    let found = webhooks::list(&services.store, page.after, page.rows()).await?;
    let shown = found.into_iter().map(|webhook| shown_to(caller.role, webhook));
    Ok(Json(page.page(shown.collect(), |webhook| webhook.id)))
}

/// Read a webhook.
///
/// Only the role `admin` sees more than the host of its URL.
#[utoipa::path(
    get, path = "/v1/admin/webhooks/{id}", tag = "Webhooks", security(("api_key" = [])),
    params(("id" = Uuid, Path)),
    responses((status = 200, body = Webhook), (status = "4XX", body = Problem)),
)]
async fn find(
    caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
) -> ApiResult<Json<Webhook>> {
    let webhook = webhooks::find(&services.store, id).await?;
    Ok(Json(shown_to(caller.role, webhook)))
}

/// Delete a webhook and its deliveries.
///
/// A running attempt may still arrive.
#[utoipa::path(
    delete, path = "/v1/admin/webhooks/{id}", tag = "Webhooks", security(("api_key" = [])),
    params(("id" = Uuid, Path)),
    responses((status = 204), (status = "4XX", body = Problem)),
)]
async fn delete(caller: Authorized<Admin>, State(services): State<Arc<Services>>, Id(id): Id) -> ApiResult<StatusCode> {
    webhooks::delete(&services.store, &caller.origin, id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Deliver an event `webhook.test`, in the same way as other events.
#[utoipa::path(
    post, path = "/v1/admin/webhooks/{id}/test", tag = "Webhooks", security(("api_key" = [])),
    params(("id" = Uuid, Path)),
    responses((status = 202, body = WebhookTest), (status = "4XX", body = Problem)),
)]
async fn test(
    caller: Authorized<Admin>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
) -> ApiResult<(StatusCode, Json<WebhookTest>)> {
    let test = webhooks::test(&services.store, &caller.origin, id).await?;
    Ok((StatusCode::ACCEPTED, Json(test)))
}

/// List a webhook's deliveries, newest first.
#[utoipa::path(
    get, path = "/v1/admin/webhooks/{id}/deliveries", tag = "Webhooks", security(("api_key" = [])),
    params(("id" = Uuid, Path), DeliveryParameters, PageParameters),
    responses((status = 200, body = Page<WebhookDelivery>), (status = "4XX", body = Problem)),
)]
async fn deliveries(
    _caller: Authorized<Viewer>,
    State(services): State<Arc<Services>>,
    Id(id): Id,
    List {
        filter: parameters,
        page,
    }: List<DeliveryParameters>,
) -> ApiResult<Json<Page<WebhookDelivery>>> {
    let found = webhooks::deliveries(&services.store, id, parameters.status, page.after, page.rows()).await?;
    Ok(Json(page.page(found, |delivery| delivery.id)))
}

/// For some receivers, the URL is the secret that lets anyone post there.
fn shown_to(role: Role, webhook: Webhook) -> Webhook {
    match role {
        Role::Admin => webhook,
        Role::Viewer | Role::Operator | Role::RelyingParty | Role::Mdm => masked(webhook),
    }
}
