//! `/openapi.json`: the description of this API.

use std::sync::Arc;

use axum::{Extension, http::header, response::IntoResponse};
use utoipa_axum::{router::OpenApiRouter, routes};

use crate::services::Services;

/// The serialized document, made once.
#[derive(Clone)]
pub(in crate::http) struct Published(pub(in crate::http) Arc<str>);

pub(super) fn router() -> OpenApiRouter<Arc<Services>> {
    OpenApiRouter::new().routes(routes!(document))
}

/// Read the OpenAPI document.
#[utoipa::path(
    get, path = "/openapi.json", tag = "Relying parties",
    responses((status = 200, content_type = "application/json", body = serde_json::Value)),
)]
async fn document(Extension(Published(document)): Extension<Published>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], document.to_string())
}
